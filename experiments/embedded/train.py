"""Train an embedded model on captioned procedural portraits, from nothing; goes on where it was
stopped.

`python -m experiments.embedded.train` renders the training portraits, trains the autoencoder, then
the UNet with its text encoder, and writes the model in the diffusers layout. `--model tiny_b` is
narrower and has other random numbers; it takes the autoencoder of `tiny`, as versions of Stable
Diffusion share theirs. Every stage leaves its state under --work.
`torchrun --nproc-per-node 2 -m experiments.embedded.train` shares each step among processes, which
on a CPU is faster than threads.
"""

import argparse
import hashlib
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

from anticustom.draws import keyed_generator
from anticustom.model_files import EMBEDDED
from experiments.embedded.architecture import (
    RARE_TOKENS,
    WIDTHS,
    make_tokenizer,
    new_autoencoder,
    new_scheduler,
    new_text_encoder,
    new_unet,
)
from experiments.embedded.training_portraits import (
    CAPTIONS,
    NAMED_PORTRAITS,
    TrainingPortraits,
    names,
    training_portraits,
)
from experiments.embedded.training_run import (
    Run,
    first_process_first,
    join_processes,
    rank_and_processes,
    shuffled_batches,
)

SEEDS = {"tiny": 1, "tiny_b": 2}  # of UNet and text encoder
NOISE = 12  # largest amplitude of the noise that the encoder learns to see through, grey levels


def train_autoencoder(work: Path, images: Tensor, steps: int, device: str) -> AutoencoderKL:
    """Return the autoencoder trained for L1, sharp edges and nearly standard latents, its scaling
    factor measured.

    Most of what it encodes carries random signs that it has to remove. An encoder for 512 px hardly
    passes such noise on, for one latent there averages over many more pixels.
    """
    rank, processes = rank_and_processes()
    torch.manual_seed(0)
    vae = new_autoencoder().to(device)
    run = Run(work / "tiny-autoencoder.pt", vae, steps, learning_rate=1e-3)
    batches = shuffled_batches(torch.arange(len(images)), 16, run.first)
    for step in run:
        generator = torch.Generator().manual_seed(processes * step + rank)
        x = images[next(batches)].to(device).float() / 127.5 - 1
        noisy = (x + _noise(x.shape, generator).to(device)).clamp(-1, 1)
        with torch.autocast(device, torch.bfloat16):
            posterior = vae.encode(noisy).latent_dist
            y = vae.decode(posterior.sample(generator)).sample
        run.descend(reconstruction_loss(y.float(), x) + 1e-6 * posterior.kl().float().mean())
    vae.eval().requires_grad_(False)
    with torch.no_grad():
        latents = vae.encode(images[:512].to(device).float() / 127.5 - 1).latent_dist.mean
    vae.register_to_config(scaling_factor=round(1 / latents.std().item(), 5))
    return vae


def autoencoder_of_tiny() -> AutoencoderKL:
    """Return `tiny`'s autoencoder without the folder it came from, which `from_pretrained` would
    write into every copy.
    """
    folder = EMBEDDED / "tiny" / "vae"
    vae = AutoencoderKL.from_config(AutoencoderKL.load_config(folder))
    vae.load_state_dict(load_file(folder / SAFETENSORS_WEIGHTS_NAME))
    return vae.eval().requires_grad_(False)


def _noise(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Return random signs times an amplitude drawn for each image, 0 for two in five."""
    amplitude = torch.rand((shape[0], 1, 1, 1), generator=generator) * NOISE / 127.5
    with_noise = torch.rand((shape[0], 1, 1, 1), generator=generator) < 0.6
    signs = torch.randint(0, 2, shape, generator=generator) * 2 - 1
    return signs * amplitude * with_noise


def reconstruction_loss(y: Tensor, x: Tensor) -> Tensor:
    """L1 of the pixels, of their differences to the neighbours, and of the picture at half its
    size.
    """
    edges = sum((y.diff(dim=d) - x.diff(dim=d)).abs().mean() for d in (2, 3))
    return (
        (y - x).abs().mean()
        + 0.5 * edges
        + 0.5 * (F.avg_pool2d(y, 2) - F.avg_pool2d(x, 2)).abs().mean()
    )


def train_unet(
    model: str,
    work: Path,
    vae: AutoencoderKL,
    portraits: TrainingPortraits,
    steps: int,
    batch: int,
    device: str,
) -> tuple[UNet2DConditionModel, CLIPTextModel, CLIPTokenizer]:
    """Return UNet and text encoder, the averages of their weights over the last thousands of
    steps.
    """
    rank, _ = rank_and_processes()
    torch.manual_seed(SEEDS[model])
    tokenizer = make_tokenizer([*portraits.captions, names()])
    tokens = tokenizer(
        [text for texts in portraits.captions for text in texts] + [""],
        padding="max_length",
        truncation=True,
        return_tensors="pt",
    ).input_ids
    empty, tokens = tokens[-1], tokens[:-1].view(len(portraits.captions), CAPTIONS, -1)
    with first_process_first():
        posteriors = encode_all(work, vae, portraits.images, device)
    text_encoder, unet = new_text_encoder(tokenizer).to(device), new_unet(model).to(device)
    both = nn.ModuleDict({"unet": unet, "text_encoder": text_encoder})
    scheduler = new_scheduler()
    average = EMAModel(both.parameters(), decay=0.999, use_ema_warmup=True, power=0.75)
    run = Run(work / f"{model}-unet.pt", both, steps, learning_rate=6e-4, average=average)
    average.to(device)
    everyone = torch.arange(len(tokens))
    # the named are drawn thrice as often: one word has to become one face
    batches = shuffled_batches(
        torch.cat([everyone, *[everyone[:NAMED_PORTRAITS]] * 2]), batch, run.first, SEEDS[model]
    )
    if device == "cpu":  # where the gradient of the fused attention is slower than plain products
        unet.set_attn_processor(AttnProcessor())
    for step in run:
        chosen = next(batches)
        generator = keyed_generator(SEEDS[model], step, rank)
        mean, std = (part.float().to(device) for part in posteriors[:, chosen])
        noise, normal = torch.randn((2, *mean.shape), generator=generator).to(device)
        timesteps = torch.randint(0, 1000, (len(chosen),), generator=generator).to(device)
        text = tokens[chosen, torch.randint(0, CAPTIONS, (len(chosen),), generator=generator)]
        text[torch.rand(len(chosen), generator=generator) < 0.1] = empty  # for guidance
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
    """Draw the embeddings of the rare tokens from the distribution of the names'.

    No caption has them, so that training leaves them near zero, where a large model's rare tokens,
    which some captions had, do not lie.
    """
    table = text_encoder.get_input_embeddings().weight
    known = table[tokenizer.convert_tokens_to_ids([f"{name}</w>" for name in names()])]
    rare = tokenizer.convert_tokens_to_ids([f"{token}</w>" for token in RARE_TOKENS])
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn((len(rare), len(known)), generator=generator).to(known)
    spread = weights @ (known - known.mean(0)) / len(known) ** 0.5
    table[rare] = known.mean(0) + spread


@torch.no_grad()
def encode_all(work: Path, vae: AutoencoderKL, images: Tensor, device: str) -> Tensor:
    """Return the posteriors of all images, float16 (2, n, c, h, w): mean and standard deviation."""
    encoder = b"".join(p.cpu().numpy().tobytes() for p in vae.encoder.parameters())
    file, parts = work / f"latents-{hashlib.sha256(encoder).hexdigest()[:8]}.pt", []
    if file.exists():
        return torch.load(file, weights_only=True)
    for chunk in tqdm(images.split(64), desc="latents"):
        posterior = vae.encode(chunk.to(device).float() / 127.5 - 1).latent_dist
        parts.append(torch.stack([posterior.mean, posterior.std]).half().cpu())
    partial, posteriors = file.with_suffix(".partial"), torch.cat(parts, dim=1)
    torch.save(posteriors, partial)
    partial.rename(file)
    return posteriors


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=WIDTHS, default="tiny")
    parser.add_argument(
        "--work", type=Path, default=Path("outputs/tiny"), help="states of the training"
    )
    parser.add_argument("--output", type=Path, help="the model; anticustom/weights/MODEL")
    parser.add_argument("--portraits", type=int, default=18000)
    parser.add_argument("--autoencoder-steps", type=int, default=2700, help="of 16 portraits")
    parser.add_argument("--unet-steps", type=int, default=6500, help="of --batch portraits")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    settings = parser.parse_args(arguments)
    work, device = settings.work, settings.device
    join_processes()
    with first_process_first():
        portraits = training_portraits(work, settings.portraits)
    if settings.model == "tiny":
        vae = train_autoencoder(work, portraits.images, settings.autoencoder_steps, device)
    else:
        vae = autoencoder_of_tiny().to(device)
    unet, text_encoder, tokenizer = train_unet(
        settings.model, work, vae, portraits, settings.unet_steps, settings.batch, device
    )
    if rank_and_processes()[0] > 0:
        return
    pipeline = StableDiffusionPipeline(
        vae=vae.half(),
        unet=unet.half(),
        text_encoder=text_encoder.half(),
        tokenizer=tokenizer,
        scheduler=new_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    output = settings.output or EMBEDDED / settings.model
    pipeline.save_pretrained(output, safe_serialization=True)


if __name__ == "__main__":
    main()
