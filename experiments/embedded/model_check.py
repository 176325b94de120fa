"""Measure an embedded model by itself: its autoencoder, the faces of its samples, its obedience.

`python -m experiments.embedded.model_check` prints the figures of the model card: PSNR of the
autoencoder, share of samples with a face, differences between samples, share of samples that follow
a prompt. It also draws a sheet of samples.
"""

import argparse
import json
from itertools import combinations
from pathlib import Path

import torch
from omegaconf import OmegaConf
from torch import Tensor
from torch.nn.functional import cosine_similarity
from torchvision.utils import make_grid
from tqdm import tqdm

from anticustom import model_files
from anticustom.diffusion import LatentDiffusion
from anticustom.draws import keyed_generator
from anticustom.images import write_png
from anticustom.portraits import person, render, shot
from anticustom.portraits.people import HAIR_COLOURS
from eval.faces import FaceReader
from eval.recognizers import load_recognizer
from experiments.embedded.attribute_reader import AttributeReader, trained_reader
from experiments.terminal import quiet_libraries

PLAIN = "a photo of person"
# prompt, attribute that it asks for, and values that follow the prompt
PROMPTS = [
    *((f"{PLAIN} with {colour} hair", "hair", {colour}) for colour in HAIR_COLOURS),
    (f"{PLAIN} with glasses", "glasses", {"yes"}),
    (f"{PLAIN} with a beard", "beard", {"full", "goatee"}),
]
SETTINGS = Path(__file__).parents[2] / "conf" / "surrogate_model" / "_embedded.yaml"
GALLERY = OmegaConf.load(SETTINGS).gallery
PEOPLE = range(64)  # development identities: the model was trained on none of them


def sampled(model: LatentDiffusion, prompt: str, count: int, guidance_scale: float) -> Tensor:
    """Return `count` samples (n, 3, h, w) in [0, 1].

    All settings but the guidance scale are those of the embedded galleries.
    """
    generators = [keyed_generator(0, "check", prompt, k) for k in range(count)]
    noise = torch.stack([torch.randn(model.latent_shape, generator=g) for g in generators])
    settings = {key: GALLERY[key] for key in ("steps", "scheduler", "karras_sigmas")}
    chunks = tqdm(noise.split(16), desc=prompt)
    return torch.cat(
        [model.sample(prompt, x, guidance_scale=guidance_scale, **settings) for x in chunks]
    )


class Embeddings:
    """SFace embeddings of images, None where no face is found."""

    def __init__(self) -> None:
        self.recognizer = load_recognizer("sface")
        self.faces = FaceReader(self.recognizer)

    def __call__(self, images: Tensor) -> list[Tensor | None]:
        return [self._embedding(face.crop) if face else None for face in map(self.faces, images)]

    def _embedding(self, crop: Tensor) -> Tensor:
        return self.recognizer.embed(self.recognizer.features(crop[None]))[0]


def spread(embeddings: list[Tensor | None]) -> float:
    """Return the mean cosine distance between two of the embeddings."""
    pairs = combinations([e for e in embeddings if e is not None], 2)
    return 1 - float(torch.stack([cosine_similarity(a, b, dim=0) for a, b in pairs]).mean())


@torch.no_grad()
def autoencoder_figures(
    model: LatentDiffusion, portraits: Tensor, embeddings: Embeddings
) -> dict[str, float]:
    """Return PSNR in dB, and the SFace cosine of a reconstruction to its portrait."""
    reconstructions = torch.cat(
        [
            model.decode(model.latents(model.posterior(chunk), torch.zeros(())))
            for chunk in portraits.split(16)
        ]
    )
    error = (reconstructions - portraits).square().mean((1, 2, 3))
    pairs = zip(embeddings(portraits), embeddings(reconstructions), strict=True)
    alike = [cosine_similarity(a, b, dim=0) for a, b in pairs if a is not None and b is not None]
    return {
        "autoencoder_psnr_db": float((-10 * error.log10()).mean()),
        "autoencoder_similarity": float(torch.stack(alike).mean()),
    }


def followed(
    model: LatentDiffusion, reader: AttributeReader, count: int, guidance_scale: float
) -> dict[str, dict[str, float]]:
    """Return for each of PROMPTS the share of samples that have what the prompt asks for.

    The share of samples of the plain prompt that have it stands beside it.
    """
    prompts = [PLAIN, *(prompt for prompt, _, _ in PROMPTS)]
    rows = {
        prompt: reader.read(sampled(model, prompt, count, guidance_scale)) for prompt in prompts
    }

    def share(prompt: str, attribute: str, values: set[str]) -> float:
        return sum(row[attribute] in values for row in rows[prompt]) / count

    return {
        prompt: {
            "followed": share(prompt, attribute, values),
            "without_asking": share(PLAIN, attribute, values),
        }
        for prompt, attribute, values in PROMPTS
    }


def main() -> None:
    quiet_libraries()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny", help="embedded model or local diffusers folder")
    parser.add_argument("--samples", type=int, default=256, help=f"of {PLAIN!r}")
    parser.add_argument("--each", type=int, default=24, help="samples of each other prompt")
    parser.add_argument("--guidance-scale", type=float, default=GALLERY.guidance_scale)
    parser.add_argument("--output", type=Path, default=Path("outputs/tiny_check"))
    settings = parser.parse_args()
    model = model_files.load(settings.model)
    portraits = render([person(k) for k in PEOPLE], [shot(k, 0) for k in PEOPLE], model.image_size)
    embeddings = Embeddings()
    samples = sampled(model, PLAIN, settings.samples, settings.guidance_scale)
    faces = embeddings(samples)
    reader = trained_reader(settings.output / "reader.pt")
    figures = {
        **autoencoder_figures(model, portraits, embeddings),
        "faces_found": sum(face is not None for face in faces) / len(faces),
        "spread_of_samples": spread(faces),
        "spread_of_portraits": spread(embeddings(portraits)),
        "prompts": followed(model, reader, settings.each, settings.guidance_scale),
    }
    write_png(settings.output / "portraits.png", make_grid(portraits, 16))
    write_png(settings.output / "samples.png", make_grid(samples[:64], 16))
    text = json.dumps(figures, indent=2)
    (settings.output / "figures.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
