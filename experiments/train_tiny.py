"""Train the embedded model `tiny` on captioned procedural portraits, from nothing; goes on where
it was stopped.

`python -m experiments.train_tiny` renders the training portraits, trains the autoencoder, then the
UNet with its text encoder, and writes the model in the diffusers layout. Every stage leaves its
state under --work.
"""

import argparse
import hashlib
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.optimization import get_cosine_schedule_with_warmup
from diffusers.training_utils import EMAModel, compute_snr
from torch import Tensor, nn
from tqdm import tqdm
from transformers import CLIPTextModel, CLIPTokenizer

from experiments.tiny_model import (
    make_tokenizer,
    new_autoencoder,
    new_scheduler,
    new_text_encoder,
    new_unet,
)
from experiments.training_portraits import CAPTIONS, training_portraits

# --- the training portraits
# ---------------------------------------------------------------------------------------


def shuffled_batches(count: int, batch: int, first_step: int) -> Iterator[Tensor]:
    """Yield indices without end, every epoch in an order of its own, as if `first_step` batches
    had been drawn.
    """
    per_epoch = count // batch
    step = first_step
    while True:
        epoch, position = divmod(step, per_epoch)
        order = torch.randperm(count, generator=torch.Generator().manual_seed(epoch))
        for k in range(position, per_epoch):
            yield order[k * batch : (k + 1) * batch]
            step += 1


class Run:
    """The steps of training `network` with AdamW: bar, timed checkpoints, resumption.

    `average`, if given, is kept in the checkpoints too.
    """

    def __init__(
        self,
        file: Path,
        network: nn.Module,
        steps: int,
        *,
        learning_rate: float,
        average: EMAModel | None = None,
    ):
        self.file, self.network, self.steps, self.first = file, network, steps, 0
        optimizer = torch.optim.AdamW(
            network.parameters(), lr=learning_rate, weight_decay=1e-3, betas=(0.9, 0.99)
        )
        schedule = get_cosine_schedule_with_warmup(optimizer, 200, steps)
        self.parts = {"network": network, "optimizer": optimizer, "schedule": schedule}
        self.parts |= {"average": average} if average else {}
        if file.exists():
            saved = torch.load(file, weights_only=True)
            self.first = saved.pop("step")
            for name, part in self.parts.items():
                part.load_state_dict(saved[name])

    def __iter__(self) -> Iterator[int]:
        saved_at = time.monotonic()
        left = range(self.first, self.steps)
        self.bar = tqdm(left, desc=self.file.stem, initial=self.first, total=self.steps)
        for step in self.bar:
            yield step
            if time.monotonic() - saved_at > 300:
                self.save(step + 1)
                saved_at = time.monotonic()
        self.save(self.steps)

    def descend(self, loss: Tensor) -> None:
        """Take one optimizer step down `loss`."""
        self.bar.set_postfix(loss=f"{loss.item():.4f}", refresh=False)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.parts["optimizer"].step()
        self.parts["optimizer"].zero_grad()
        self.parts["schedule"].step()
        if "average" in self.parts:
            self.parts["average"].step(self.network.parameters())

    def save(self, step: int) -> None:
        partial = self.file.with_suffix(".partial")
        states = {name: part.state_dict() for name, part in self.parts.items()}
        torch.save(states | {"step": step}, partial)
        partial.rename(self.file)


def train_autoencoder(work: Path, images: Tensor, steps: int, device: str) -> AutoencoderKL:
    """Return the autoencoder trained for L1, sharp edges and nearly standard latents, its scaling
    factor measured.
    """
    torch.manual_seed(0)
    vae = new_autoencoder().to(device)
    run = Run(work / "autoencoder.pt", vae, steps, learning_rate=1e-3)
    batches = shuffled_batches(len(images), 16, run.first)
    for _ in run:
        x = images[next(batches)].to(device).float() / 127.5 - 1
        with torch.autocast(device, torch.bfloat16):
            posterior = vae.encode(x).latent_dist
            y = vae.decode(posterior.sample()).sample
        run.descend(reconstruction_loss(y.float(), x) + 1e-6 * posterior.kl().float().mean())
    vae.eval().requires_grad_(False)
    with torch.no_grad():
        latents = vae.encode(images[:512].to(device).float() / 127.5 - 1).latent_dist.mean
    vae.register_to_config(scaling_factor=round(1 / latents.std().item(), 5))
    return vae


def refine_decoder(
    work: Path, vae: AutoencoderKL, images: Tensor, steps: int, device: str
) -> AutoencoderKL:
    """Return the autoencoder with its decoder trained on: sharper pictures of the same latents."""
    torch.manual_seed(2)
    decoder = nn.ModuleDict({"decoder": vae.decoder, "conv": vae.post_quant_conv})
    decoder.requires_grad_(True)
    run = Run(work / "decoder.pt", decoder, steps, learning_rate=7e-4)
    batches = shuffled_batches(len(images), 16, run.first)
    for _ in run:
        x = images[next(batches)].to(device).float() / 127.5 - 1
        with torch.autocast(device, torch.bfloat16):
            with torch.no_grad():
                latents = vae.encode(x).latent_dist.sample()
            y = vae.decode(latents).sample
        run.descend(reconstruction_loss(y.float(), x))
    vae.requires_grad_(False)
    return vae


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
    work: Path,
    vae: AutoencoderKL,
    images: Tensor,
    captions: list[list[str]],
    steps: int,
    batch: int,
    device: str,
) -> tuple[UNet2DConditionModel, CLIPTextModel, CLIPTokenizer]:
    """Return UNet and text encoder, the averages of their weights over the last thousands of
    steps.
    """
    torch.manual_seed(1)
    tokenizer = make_tokenizer(captions)
    tokens = tokenizer(
        [text for texts in captions for text in texts] + [""],
        padding="max_length",
        truncation=True,
        return_tensors="pt",
    ).input_ids
    empty, tokens = tokens[-1], tokens[:-1].view(len(captions), CAPTIONS, -1)
    posteriors = encode_all(work, vae, images, device)
    text_encoder, unet = new_text_encoder(tokenizer).to(device), new_unet().to(device)
    both = nn.ModuleDict({"unet": unet, "text_encoder": text_encoder})
    scheduler = new_scheduler()
    average = EMAModel(both.parameters(), decay=0.999, use_ema_warmup=True, power=0.75)
    run = Run(work / "unet.pt", both, steps, learning_rate=6e-4, average=average)
    average.to(device)
    batches = shuffled_batches(len(images), batch, run.first)
    lower = device != "cpu"  # on a CPU, bfloat16 gains nothing at these widths
    for step in run:
        chosen, generator = next(batches), torch.Generator().manual_seed(step)
        mean, std = (part.float().to(device) for part in posteriors[:, chosen])
        noise, normal = torch.randn((2, *mean.shape), generator=generator).to(device)
        timesteps = torch.randint(0, 1000, (batch,), generator=generator).to(device)
        text = tokens[chosen, torch.randint(0, CAPTIONS, (batch,), generator=generator)]
        text[torch.rand(batch, generator=generator) < 0.1] = empty  # for classifier-free guidance
        latents = (mean + std * normal) * vae.config.scaling_factor
        noisy = scheduler.add_noise(latents, noise, timesteps)
        with torch.autocast(device, torch.bfloat16, enabled=lower):
            prediction = unet(noisy, timesteps, text_encoder(text.to(device))[0]).sample
        snr = compute_snr(scheduler, timesteps)
        weight = snr.clamp(max=5) / snr  # min-SNR weighting (arXiv 2303.09556)
        run.descend((weight * (prediction.float() - noise).square().mean((1, 2, 3))).mean())
    average.copy_to(both.parameters())
    return unet, text_encoder, tokenizer


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
    parser.add_argument(
        "--work", type=Path, default=Path("outputs/tiny"), help="states of the training"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("anticustom/weights/tiny"), help="the model"
    )
    parser.add_argument(
        "--portraits", type=int, default=16000, help="training portraits, in thousands"
    )
    parser.add_argument("--autoencoder-steps", type=int, default=2700, help="of 16 portraits")
    parser.add_argument("--decoder-steps", type=int, default=2600, help="of 16 portraits")
    parser.add_argument("--unet-steps", type=int, default=6500, help="of --batch portraits")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    settings = parser.parse_args(arguments)
    work, device = settings.work, settings.device
    images, captions = training_portraits(work, settings.portraits)
    vae = train_autoencoder(work, images, settings.autoencoder_steps, device)
    refine_decoder(work, vae, images, settings.decoder_steps, device)
    unet, text_encoder, tokenizer = train_unet(
        work, vae, images, captions, settings.unet_steps, settings.batch, device
    )
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
    pipeline.save_pretrained(settings.output, safe_serialization=True)


if __name__ == "__main__":
    main()
