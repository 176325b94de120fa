"""Measure the embedded model on its own: what its autoencoder keeps, whether its samples have
faces, how different they are, and whether it follows its prompts.

`python -m experiments.embedded.model_check` prints the figures of the model card and draws a
sheet of samples.
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

from anticustom import diffusion, model_files
from anticustom.draws import keyed_generator
from anticustom.images import write_png
from anticustom.portraits import person, render, shot
from anticustom.portraits.people import HAIR_COLOURS
from eval.faces import FaceReader
from eval.recognizers import load_recognizer
from experiments.embedded.attribute_reader import AttributeReader, trained_reader
from experiments.terminal import quiet_libraries

PLAIN = "a photo of person"
# the prompt, the attribute it asks for, and the values that count as followed
PROMPTS = [
    *((f"{PLAIN} with {colour} hair", "hair", {colour}) for colour in HAIR_COLOURS),
    (f"{PLAIN} with glasses", "glasses", {"yes"}),
    (f"{PLAIN} with a beard", "beard", {"full", "goatee"}),
]
SETTINGS = Path(__file__).parents[2] / "conf" / "surrogate_model" / "_embedded.yaml"
GALLERY = OmegaConf.load(SETTINGS).gallery
PEOPLE = range(64)  # development identities: the model was trained on none of them


def sampled(
    model: diffusion.LatentDiffusion, prompt: str, count: int, guidance_scale: float
) -> Tensor:
    """Return `count` samples (n, 3, h, w) in [0, 1], but for the guidance scale sampled as the
    embedded galleries are.
    """
    images = []
    for start in tqdm(range(0, count, 16), desc=prompt):
        keys = range(start, min(start + 16, count))
        noise = [
            torch.randn(model.latent_shape, generator=keyed_generator(0, "check", prompt, k))
            for k in keys
        ]
        images.append(
            model.sample(
                prompt,
                torch.stack(noise),
                steps=GALLERY.steps,
                guidance_scale=guidance_scale,
                scheduler=GALLERY.scheduler,
                karras_sigmas=GALLERY.karras_sigmas,
            )
        )
    return torch.cat(images)


class Embeddings:
    """SFace embeddings of images, None where no face is found."""

    def __init__(self) -> None:
        self.recognizer = load_recognizer("sface")
        self.faces = FaceReader(self.recognizer)

    def __call__(self, images: Tensor) -> list[Tensor | None]:
        faces = [self.faces(image) for image in images]
        features = [self.recognizer.features(face.crop[None]) if face else None for face in faces]
        return [None if f is None else self.recognizer.embed(f)[0] for f in features]


def spread(embeddings: list[Tensor | None]) -> float:
    """Return the mean cosine distance between two of the embeddings."""
    found = [embedding for embedding in embeddings if embedding is not None]
    return 1 - float(
        torch.stack([cosine_similarity(a, b, dim=0) for a, b in combinations(found, 2)]).mean()
    )


@torch.no_grad()
def autoencoder_figures(
    model: diffusion.LatentDiffusion, portraits: Tensor, embeddings: Embeddings
) -> dict:
    """Return PSNR in dB, and the SFace cosine of a reconstruction to its portrait."""
    again = torch.cat(
        [
            model.decode(model.latents(model.posterior(chunk), torch.zeros(())))
            for chunk in portraits.split(16)
        ]
    )
    error = (again - portraits).square().mean((1, 2, 3))
    pairs = zip(embeddings(portraits), embeddings(again), strict=True)
    alike = [cosine_similarity(a, b, dim=0) for a, b in pairs if a is not None and b is not None]
    return {
        "autoencoder_psnr_db": float((-10 * error.log10()).mean()),
        "autoencoder_similarity": float(torch.stack(alike).mean()),
    }


def followed(
    model: diffusion.LatentDiffusion, reader: AttributeReader, count: int, guidance_scale: float
) -> dict:
    """Return the share of samples that follow each prompt, and of those that do without asking."""
    plain = reader.read(sampled(model, PLAIN, count, guidance_scale))
    table = {}
    for prompt, attribute, wanted in PROMPTS:
        seen = reader.read(sampled(model, prompt, count, guidance_scale))
        shares = [sum(r[attribute] in wanted for r in rows) / count for rows in (seen, plain)]
        table[prompt] = dict(zip(("followed", "without_asking"), shares, strict=True))
    return table


def main() -> None:
    quiet_libraries()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny", help="embedded model or local diffusers folder")
    parser.add_argument("--samples", type=int, default=256, help=f"of {PLAIN!r}")
    parser.add_argument("--each", type=int, default=24, help="samples of each other prompt")
    parser.add_argument("--guidance-scale", type=float, default=GALLERY.guidance_scale)
    parser.add_argument("--output", type=Path, default=Path("outputs/tiny_check"))
    settings = parser.parse_args()
    model = model_files.load(str(model_files.local_folder(settings.model)))
    size = model.image_size
    portraits = render([person(k) for k in PEOPLE], [shot(k, 0) for k in PEOPLE], size)
    embeddings = Embeddings()
    figures = autoencoder_figures(model, portraits, embeddings)
    samples = sampled(model, PLAIN, settings.samples, settings.guidance_scale)
    found = embeddings(samples)
    figures["faces_found"] = sum(e is not None for e in found) / len(found)
    figures["spread_of_samples"] = spread(found)
    figures["spread_of_portraits"] = spread(embeddings(portraits))
    reader = trained_reader(settings.output / "reader.pt")
    figures["prompts"] = followed(model, reader, settings.each, settings.guidance_scale)
    settings.output.mkdir(parents=True, exist_ok=True)
    write_png(settings.output / "portraits.png", make_grid(portraits, 16))
    write_png(settings.output / "samples.png", make_grid(samples[:64], 16))
    text = json.dumps(figures, indent=2)
    (settings.output / "figures.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
