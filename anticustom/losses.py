"""What an attack ascends: per-image losses of a diffusion model on an image, as named terms whose
sum is the loss.
"""

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from anticustom.diffusion import LatentDiffusion, Posterior
from anticustom.draws import Draw
from anticustom.images import read_photo

BLOCK = r"\d+(\.\d+)?"  # level of the decoder, or level.block

# named terms, each (n,)
Terms = dict[str, Tensor]


@dataclass(frozen=True)
class Objective:
    """A loss against a surrogate that stands still: of images (n, 3, h, w) in [0, 1] and their
    draw, or `of_posterior`, what the VAE made of them.
    """

    model: LatentDiffusion
    of_posterior: Callable[[Posterior, Draw], Terms]

    def __call__(self, images: Tensor, draw: Draw) -> Terms:
        return self.of_posterior(self.model.posterior(images), draw)


class Loss(Protocol):
    def bind(
        self,
        model: LatentDiffusion,
        *,
        prompt: str,
        clean: Callable[[], Posterior],
        start: Callable[[], Tensor],
    ) -> Objective:
        """Fix what stays the same while the model stands still.

        `clean` gives the posterior of the clean originals, `start` the images at the start of this
        phase of the attack; a loss that compares with neither calls neither.
        """


@dataclass(frozen=True)
class Denoising:
    """The model's own training loss ||target - prediction||^2, its mean over each image's
    latents.
    """

    def bind(self, model: LatentDiffusion, *, prompt: str, **references) -> Objective:
        with torch.no_grad():
            embeddings = model.text_embeddings([prompt])

        def terms(posterior: Posterior, draw: Draw) -> Terms:
            latents = model.latents(posterior, draw.posterior)
            return {"denoising": denoising(model, latents, draw, embeddings)}

        return Objective(model, terms)


@dataclass(frozen=True, kw_only=True)
class FeatureInterference:
    """SimAC's loss: denoising + `weight` x the squared distance of high-frequency decoder features
    (arXiv 2312.07865).

    The features are the outputs of the second convolution of the decoder's residual blocks
    `up_blocks`: 3 are all of level 3, "3.0" is its first. Their distance to those of the clean
    reference, at the same noise and timestep, is averaged over each layer, then over the layers.
    `reference` is the clean original, or as in the released code the images at the start of the
    phase ("phase_start"); there, too, the term is added to the loss without its gradient
    (`gradient=False`).
    """

    weight: float = 1.0
    up_blocks: Sequence[int | str] = (3,)
    reference: Literal["original", "phase_start"] = "original"
    gradient: bool = True

    def __post_init__(self):
        if self.reference not in ("original", "phase_start"):
            raise ValueError(f"loss.reference={self.reference!r}: expected original or phase_start")
        # as a number, the block 3.0 would be the level 3
        fit = [not isinstance(k, float) and re.fullmatch(BLOCK, str(k)) for k in self.up_blocks]
        if not fit or not all(fit):
            raise ValueError(
                f"loss.up_blocks={self.up_blocks!r}: expected levels of the decoder, such as 3, or "
                'single blocks of them in quotes, such as "3.0"'
            )
        if not self.weight >= 0:
            raise ValueError(f"loss.weight={self.weight!r}: expected a number of at least 0")

    def bind(self, model: LatentDiffusion, *, prompt: str, clean, start) -> Objective:
        with torch.no_grad():
            embeddings = model.text_embeddings([prompt])
            of_clean = self.reference == "original"
            reference = clean() if of_clean else model.posterior(start())

        def terms(posterior: Posterior, draw: Draw) -> Terms:
            with torch.no_grad(), recorded_features(model, self.up_blocks) as wanted:
                latents = model.latents(reference, draw.clean_posterior)
                denoising(model, latents, draw, embeddings)
            with recorded_features(model, self.up_blocks) as features:
                latents = model.latents(posterior, draw.posterior)
                own = denoising(model, latents, draw, embeddings)
            distance = torch.stack(
                [per_image_mse(f, w) for f, w in zip(features, wanted, strict=True)]
            ).mean(0)
            return {
                "denoising": own,
                "feature": self.weight * (distance if self.gradient else distance.detach()),
            }

        return Objective(model, terms)


@dataclass(frozen=True, kw_only=True)
class TargetShift:
    """Anti-DreamBooth's targeted loss: one step of denoising is to lead towards a `target` image.

    The loss is `denoising_weight` x denoising - ||x_(t-1) - y_(t-1)||^2, where x_(t-1) is what the
    model makes of the noisy image in one ancestral step and y_(t-1) the target, noised alike.
    `target` is a file, or null for a procedural pattern. The released code adds the denoising loss
    (1), adds the step's random noise to x_(t-1) (`ancestral_noise`), at t = 0 noises the target as
    at the last timestep (`wraps`), and rounds the target's latents (`bfloat16_target`).
    """

    target: str | None = None
    denoising_weight: float = 0.0
    ancestral_noise: bool = False
    wraps: bool = False
    bfloat16_target: bool = False

    NEUTRAL: ClassVar[dict] = {"bfloat16_target": False}

    def __post_init__(self):
        if not self.denoising_weight >= 0:
            weight = self.denoising_weight
            raise ValueError(f"loss.denoising_weight={weight!r}: expected at least 0")
        if self.target is not None and not Path(self.target).is_file():
            raise ValueError(f"loss.target={self.target}: no such file; null takes a pattern")
        target_image(self.target, 64)  # refuses a file that is no image now

    def bind(self, model: LatentDiffusion, *, prompt: str, clean, start) -> Objective:
        with torch.no_grad():
            embeddings = model.text_embeddings([prompt])
            image = target_image(self.target, model.image_size)[None].to(model.device)
            target = model.latents(model.posterior(image), torch.zeros((), device=model.device))
            target = target.bfloat16().float() if self.bfloat16_target else target

        def terms(posterior: Posterior, draw: Draw) -> Terms:
            latents = model.latents(posterior, draw.posterior)
            noisy = model.noisy(latents, draw.noise, draw.timesteps)
            prediction = model.predict(noisy, draw.timesteps, embeddings)
            wanted = model.target(latents, draw.noise, draw.timesteps)
            ancestral = draw.ancestral if self.ancestral_noise else torch.zeros_like(noisy)
            led = model.previous(noisy, prediction, draw.timesteps, ancestral)
            before = (draw.timesteps - 1) % len(model.timesteps)
            goal = model.noisy(target.expand_as(latents), draw.noise, before)
            if not self.wraps:
                goal = torch.where(draw.timesteps[:, None, None, None] > 0, goal, target)
            return {
                "denoising": self.denoising_weight * per_image_mse(prediction, wanted),
                "target": -per_image_mse(led, goal),
            }

        return Objective(model, terms)


def target_image(file: str | None, size: int) -> Tensor:
    """Return the image (3, size, size) in [0, 1] to which a targeted attack pulls: a file's centre,
    or a chequered pattern of strong edges, which is nobody's property.
    """
    if file is not None:
        return read_photo(file, size)
    y, x = torch.meshgrid(*[torch.arange(size) * 8 // size] * 2, indexing="ij")
    fields = torch.stack([(x + y) % 2, x % 2, y % 2])
    return fields.float()


def denoising(model: LatentDiffusion, latents: Tensor, draw: Draw, embeddings: Tensor) -> Tensor:
    """Return the diffusion loss of each image, (n,)."""
    noisy = model.noisy(latents, draw.noise, draw.timesteps)
    prediction = model.predict(noisy, draw.timesteps, embeddings)
    return per_image_mse(prediction, model.target(latents, draw.noise, draw.timesteps))


def per_image_mse(a: Tensor, b: Tensor) -> Tensor:
    return (a.float() - b.float()).square().flatten(1).mean(1)


def decoder_layers(model: LatentDiffusion) -> dict[str, nn.Module]:
    """Return the second convolution of every residual block of the decoder, by level.block, in the
    order in which they compute.
    """
    return {
        f"{level}.{k}": resnet.conv2
        for level, block in enumerate(model.unet.up_blocks)
        for k, resnet in enumerate(block.resnets)
    }


def chosen_layers(layers: Sequence[str], up_blocks: Sequence[int | str]) -> set[str]:
    """Return those of a decoder's layers, by their names, that `up_blocks` names: levels or single
    layers. Raises ValueError for blocks that the decoder lacks.
    """
    chosen = {
        str(block): [name for name in layers if str(block) in (name, name.partition(".")[0])]
        for block in up_blocks
    }
    if lacking := [block for block, names in chosen.items() if not names]:
        raise ValueError(
            f"loss.up_blocks: the decoder has no {', '.join(lacking)}, but {', '.join(layers)}"
        )
    return {name for names in chosen.values() for name in names}


@contextlib.contextmanager
def recorded_features(
    model: LatentDiffusion, up_blocks: Sequence[int | str]
) -> Iterator[list[Tensor]]:
    """Collect the decoder features of the forward passes made inside the `with`, in the order of
    the layers.

    Raises ValueError for blocks that the decoder lacks.
    """
    features: list[Tensor] = []
    layers = decoder_layers(model)
    chosen = chosen_layers(list(layers), up_blocks)
    hooks = [
        layer.register_forward_hook(lambda layer, inputs, output: features.append(output))
        for name, layer in layers.items()
        if name in chosen
    ]
    try:
        yield features
    finally:
        for hook in hooks:
            hook.remove()
