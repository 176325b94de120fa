"""Train an embedded model on captioned procedural portraits, from nothing.

`python -m experiments.embedded.train` renders the training portraits and trains the autoencoder,
then the UNet with its text encoder. It writes the model in the diffusers layout. A training that
was stopped goes on where it was: its states are under --work.
`--model tiny_b` is narrower and has other random numbers. It takes the autoencoder of `tiny`, as
versions of Stable Diffusion share theirs.
`torchrun --nproc-per-node 2 -m experiments.embedded.train` shares each step among processes, which
on a CPU is faster than threads.
"""

import argparse
import shutil
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from diffusers.training_utils import EMAModel
from diffusers.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file
from torch import Tensor, nn
from tqdm import tqdm
from transformers import CLIPTextModel, CLIPTokenizer

from anticustom import model_files
from anticustom.draws import keyed_generator
from experiments.embedded import architecture
from experiments.embedded.training_portraits import (
    CAPTIONS,
    NAMED_PORTRAITS,
    names,
    training_portraits,
)
from experiments.embedded.training_run import Run, processes, shuffled_batches

SEEDS = {"tiny": 1, "tiny_b": 2}  # of UNet and text encoder
NOISE = 12  # largest amplitude of the noise that the encoder learns to see through, grey levels


def train_autoencoder(work: Path, images: Tensor, steps: int, device: str) -> AutoencoderKL:
    """Return an autoencoder trained for small errors and nearly standard latents.

    Most of the images that it encodes carry random signs, which it has to remove. An encoder for
    512 px hardly passes such noise on, for one latent there averages over many more pixels.
    """
    rank, count = processes().process_index, processes().num_processes
    torch.manual_seed(0)
    vae = architecture.new_autoencoder().to(device)
    run = Run(work / "tiny-autoencoder.pt", vae, steps, learning_rate=1e-3)
    batches = shuffled_batches(torch.arange(len(images)), 16, run.first)
    for step in run:
        generator = torch.Generator().manual_seed(count * step + rank)
        x = _pixels(images[next(batches)], device)
        noisy = (x + _noise(x.shape, generator).to(device)).clamp(-1, 1)
        with torch.autocast(device, torch.bfloat16):
            posterior = vae.encode(noisy).latent_dist
            y = vae.decode(posterior.sample(generator)).sample
        run.descend(reconstruction_loss(y.float(), x) + 1e-6 * posterior.kl().float().mean())
    vae.eval().requires_grad_(False)
    latents = vae.encode(_pixels(images[:512], device)).latent_dist.mean
    vae.register_to_config(scaling_factor=round(1 / latents.std().item(), 5))
    return vae


def autoencoder_of_tiny() -> AutoencoderKL:
    """Return the autoencoder of `tiny`, without the name of the folder that it comes from.

    `from_pretrained` would write that name into every copy.
    """
    folder = model_files.EMBEDDED / "tiny" / "vae"
    vae = AutoencoderKL.from_config(AutoencoderKL.load_config(folder))
    vae.load_state_dict(load_file(folder / SAFETENSORS_WEIGHTS_NAME))
    return vae.eval().requires_grad_(False)


def _pixels(images: Tensor, device: str) -> Tensor:
    """Return uint8 images as numbers from -1 to 1."""
    return images.to(device).float() / 127.5 - 1


def _noise(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Return random signs times an amplitude drawn for each image, 0 for two in five."""
    amplitude = torch.rand((shape[0], 1, 1, 1), generator=generator) * NOISE / 127.5
    with_noise = torch.rand((shape[0], 1, 1, 1), generator=generator) < 0.6
    signs = torch.randint(0, 2, shape, generator=generator) * 2 - 1
    return signs * amplitude * with_noise


def reconstruction_loss(y: Tensor, x: Tensor) -> Tensor:
    """Return the L1 distance of pixels, plus half of two others: of differences between
    neighbouring pixels, and of the images at half their size.
    """
    pixels = (y - x).abs().mean()
    edges = sum((y.diff(dim=d) - x.diff(dim=d)).abs().mean() for d in (2, 3))
    return pixels + 0.5 * edges + 0.5 * (F.avg_pool2d(y, 2) - F.avg_pool2d(x, 2)).abs().mean()


def train_unet(
    model: str,
    work: Path,
    vae: AutoencoderKL,
    images: Tensor,
    captions: list[list[str]],
    steps: int,
    batch: int,
    device: str,
) -> tuple[UNet2DConditionModel, CLIPTextModel, CLIPTokenizer]:
    """Return UNet and text encoder, both with moving averages of their weights, and tokenizer."""
    torch.manual_seed(SEEDS[model])
    tokenizer = architecture.make_tokenizer([*captions, names()])
    tokens = tokenizer(
        [text for texts in captions for text in texts] + [""],
        padding="max_length",
        truncation=True,
        return_tensors="pt",
    ).input_ids
    empty, tokens = tokens[-1], tokens[:-1].view(len(captions), CAPTIONS, -1)
    posteriors = encoded(vae, images, device)
    text_encoder = architecture.new_text_encoder(tokenizer).to(device)
    unet = architecture.new_unet(model).to(device)
    both = nn.ModuleDict({"unet": unet, "text_encoder": text_encoder})
    scheduler = architecture.new_scheduler()
    average = EMAModel(both.parameters(), decay=0.999, use_ema_warmup=True, power=0.75)
    run = Run(work / f"{model}-unet.pt", both, steps, learning_rate=6e-4, average=average)
    average.to(device)
    # the named are drawn three times as often: one word has to become one face
    indices = torch.arange(len(tokens))
    indices = torch.cat([indices, *[indices[:NAMED_PORTRAITS]] * 2])
    batches = shuffled_batches(indices, batch, run.first, SEEDS[model])
    if device == "cpu":  # where the gradient of the fused attention is slower than plain products
        unet.set_attn_processor(AttnProcessor())
    for step in run:
        chosen = next(batches)
        count = len(chosen)
        generator = keyed_generator(SEEDS[model], step, processes().process_index)
        mean, std = (part.float().to(device) for part in posteriors[:, chosen])
        noise, normal = torch.randn((2, *mean.shape), generator=generator).to(device)
        timesteps = torch.randint(0, 1000, (count,), generator=generator).to(device)
        text = tokens[chosen, torch.randint(0, CAPTIONS, (count,), generator=generator)]
        text[torch.rand(count, generator=generator) < 0.1] = empty  # for guidance
        latents = (mean + std * normal) * vae.config.scaling_factor
        noisy = scheduler.add_noise(latents, noise, timesteps)
        with torch.autocast(device, torch.bfloat16):
            prediction = unet(noisy, timesteps, text_encoder(text.to(device))[0]).sample
        run.descend((prediction.float() - noise).square().mean())
    average.copy_to(both.parameters())
    place_rare_tokens(tokenizer, text_encoder)
    return unet, text_encoder, tokenizer


@torch.no_grad()
def place_rare_tokens(tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel) -> None:
    """Draw the embeddings of the rare tokens from the distribution of the embeddings of names.

    No caption has a rare token, and training leaves its embedding near zero. In a large model some
    captions had the rare tokens, so that their embeddings lie elsewhere.
    """
    table = text_encoder.get_input_embeddings().weight
    known = table[tokenizer.convert_tokens_to_ids([f"{name}</w>" for name in names()])]
    rare = tokenizer.convert_tokens_to_ids([f"{token}</w>" for token in architecture.RARE_TOKENS])
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn((len(rare), len(known)), generator=generator).to(known)
    spread = weights @ (known - known.mean(0)) / len(known) ** 0.5
    table[rare] = known.mean(0) + spread


@torch.no_grad()
def encoded(vae: AutoencoderKL, images: Tensor, device: str) -> Tensor:
    """Return the posteriors of uint8 images, float16 (2, n, c, h, w): mean, standard deviation."""
    chunks = []
    for chunk in tqdm(images.split(64), desc="latents"):
        posterior = vae.encode(_pixels(chunk, device)).latent_dist
        chunks.append(torch.stack([posterior.mean, posterior.std]).half().cpu())
    return torch.cat(chunks, dim=1)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=architecture.WIDTHS, default="tiny")
    parser.add_argument("--work", type=Path, default=Path("outputs/tiny"), help="states")
    parser.add_argument("--output", type=Path, help="the model; anticustom/weights/MODEL")
    parser.add_argument("--portraits", type=int, default=18000)
    parser.add_argument("--autoencoder-steps", type=int, default=2700, help="of 16 portraits")
    parser.add_argument("--unet-steps", type=int, default=6500, help="of --batch portraits")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    settings = parser.parse_args(arguments)
    work, device = settings.work, settings.device
    with processes().main_process_first():
        images, captions = training_portraits(work, settings.portraits)
    if settings.model == "tiny":
        vae = train_autoencoder(work, images, settings.autoencoder_steps, device)
    else:
        vae = autoencoder_of_tiny().to(device)
    steps, batch = settings.unet_steps, settings.batch
    unet, text_encoder, tokenizer = train_unet(
        settings.model, work, vae, images, captions, steps, batch, device
    )
    if not processes().is_main_process:
        return
    pipeline = StableDiffusionPipeline(
        vae=vae.half(),
        unet=unet.half(),
        text_encoder=text_encoder.half(),
        tokenizer=tokenizer,
        scheduler=architecture.new_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    output = settings.output or model_files.EMBEDDED / settings.model
    pipeline.save_pretrained(output)
    if model_files.part_folder(output, "vae") != output / "vae":
        shutil.rmtree(output / "vae")  # stored once, with tiny


if __name__ == "__main__":
    main()
