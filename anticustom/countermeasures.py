"""What an adversary does to photos before customizing on them, and what an attack may ascend
through to survive it: one definition serves both.

A counter-measure takes one photo (3, h, w) in [0, 1] and a CPU generator, from which all its
randomness comes, and returns a photo of the same size and range. All are differentiable.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from anticustom.draws import keyed_generator
from anticustom.images import GREY_LEVELS, from_8bit, to_8bit

if TYPE_CHECKING:
    from diffusers import DDIMScheduler

    from anticustom.diffusion import LatentDiffusion

Countermeasure = Callable[[Tensor, torch.Generator], Tensor]


def _resized(photo: Tensor, height: int, width: int) -> Tensor:
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2.functional import resize

    size = [max(height, 1), max(width, 1)]
    # bicubic weights are partly negative, so that edges overshoot
    return resize(photo, size, InterpolationMode.BICUBIC, antialias=True).clamp(0, 1)


def _check(owner: Countermeasure, key: str, kind: type, low: float, high: float) -> None:
    value = getattr(owner, key)
    if isinstance(value, bool) or not isinstance(value, kind) or not low <= value <= high:
        noun = "an integer" if kind is int else "a number"
        raise ValueError(
            f"{type(owner).__name__}.{key}={value!r}: expected {noun} from {low} to {high}"
        )


@dataclass(frozen=True)
class Unchanged:
    """The photos as they were published."""

    def __call__(self, photo: Tensor, generator: torch.Generator) -> Tensor:
        return photo


@dataclass(frozen=True)
class JPEG:
    """Pillow's JPEG, with its 4:2:0 subsampling; the gradient passes as if nothing had happened
    (a straight-through estimator).
    """

    quality: int = 75

    def __post_init__(self):
        _check(self, "quality", int, 1, 100)

    def __call__(self, photo: Tensor, generator: torch.Generator) -> Tensor:
        file = io.BytesIO()
        pixels = to_8bit(photo.detach()).permute(1, 2, 0).cpu().numpy()
        Image.fromarray(pixels).save(file, "JPEG", quality=self.quality)
        coded = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)
        return from_8bit(coded).to(photo.device) + (photo - photo.detach())


@dataclass(frozen=True)
class Blur:
    """Gaussian blur; `sigma` in pixels."""

    sigma: float = 1.4

    def __post_init__(self):
        _check(self, "sigma", Real, 0.1, 10)

    def __call__(self, photo: Tensor, generator: torch.Generator) -> Tensor:
        from torchvision.transforms.v2.functional import gaussian_blur

        side = 2 * int(np.ceil(3 * self.sigma)) + 1
        # the kernel's sum rounds, to more than 1 on some processors
        return gaussian_blur(photo, [side, side], [self.sigma, self.sigma]).clamp(0, 1)


@dataclass(frozen=True)
class Resize:
    """Down by `factor` and up again, bicubic with antialiasing."""

    factor: float = 2

    def __post_init__(self):
        _check(self, "factor", Real, 1, 16)

    def __call__(self, photo: Tensor, generator: torch.Generator) -> Tensor:
        height, width = photo.shape[-2:]
        smaller = _resized(photo, round(height / self.factor), round(width / self.factor))
        return _resized(smaller, height, width)


@dataclass(frozen=True)
class GaussianNoise:
    """White noise of standard deviation `sigma`, in grey levels."""

    sigma: float = 8

    def __post_init__(self):
        _check(self, "sigma", Real, 0, GREY_LEVELS)

    def __call__(self, photo: Tensor, generator: torch.Generator) -> Tensor:
        noise = torch.randn(photo.shape, generator=generator).to(photo.device)
        return (photo + self.sigma / GREY_LEVELS * noise).clamp(0, 1)


@dataclass(frozen=True)
class Crop:
    """The middle of the photo, `share` of each side, enlarged to the photo's size."""

    share: float = 0.9

    def __post_init__(self):
        _check(self, "share", Real, 0.1, 1)

    def __call__(self, photo: Tensor, generator: torch.Generator) -> Tensor:
        from torchvision.transforms.v2.functional import center_crop

        height, width = photo.shape[-2:]
        middle = center_crop(photo, [round(height * self.share), round(width * self.share)])
        return _resized(middle, height, width)


@dataclass(frozen=True)
class Purify:
    """Noise the photo's latents and denoise them again with DDIM, without guidance (SDEdit, the
    latent form of DiffPure).

    The noise is that of the highest of the model's `steps` evenly spaced timesteps below
    `timestep`; the sampler goes down from there. The gradient goes back through every step.
    """

    timestep: int = 100
    steps: int = 50
    prompt: str = ""
    model: "LatentDiffusion | None" = None  # given once it is loaded

    def __post_init__(self):
        _check(self, "timestep", int, 1, 1000)
        _check(self, "steps", int, 1, 1000)
        if self.steps * self.timestep < 1000:
            raise ValueError(
                f"Purify.timestep={self.timestep}: none of steps={self.steps} timesteps lies below "
                f"it: set at least steps={-(-1000 // self.timestep)}"
            )

    def __call__(self, photo: Tensor, generator: torch.Generator) -> Tensor:
        model, sampler = self.model, self._sampler(self.model)
        timesteps = self.timesteps(model).to(model.device)
        posterior = model.posterior(photo[None].to(model.device))
        noise = torch.randn(posterior.mean.shape, generator=generator).to(model.device)
        latents = model.noisy(
            model.latents(posterior, torch.zeros_like(noise)), noise, timesteps[:1]
        )
        embeddings = model.text_embeddings([self.prompt])
        for timestep in timesteps:
            prediction = model.predict(latents, timestep, embeddings)
            latents = sampler.step(prediction, timestep, latents).prev_sample
        return model.decode(latents)[0].to(photo.device)

    def timesteps(self, model: "LatentDiffusion") -> Tensor:
        """Return the timesteps of the denoising, from the highest."""
        timesteps = self._sampler(model).timesteps
        return timesteps[timesteps < self.timestep]

    def _sampler(self, model: "LatentDiffusion") -> "DDIMScheduler":
        from diffusers import DDIMScheduler

        # latents are not clipped, whatever sampler the model's folder has been saved with
        options = {"timestep_spacing": "trailing", "clip_sample": False}
        sampler = DDIMScheduler.from_config(model.scheduler.config, **options)
        sampler.set_timesteps(self.steps)
        return sampler


# the names in attack.transforms: the choices of countermeasure= with their settings, and the usual
# words for two of them
TRANSFORMS = {
    "none": Unchanged(),
    "jpeg90": JPEG(90),
    "jpeg75": JPEG(75),
    "jpeg50": JPEG(50),
    "blur": Blur(),
    "resize": Resize(),
    "gaussian_noise": GaussianNoise(),
    "crop": Crop(),
    "purify": Purify(),
    "identity": Unchanged(),
    "jpeg": JPEG(75),
}


def transforms_of(choices: Sequence[str | Countermeasure]) -> tuple[Countermeasure, ...]:
    """Return the transforms that names and settings stand for; raise ValueError for others."""
    transforms = [
        TRANSFORMS.get(choice, choice) if isinstance(choice, str) else choice for choice in choices
    ]
    kinds = {type(transform) for transform in TRANSFORMS.values()}
    if isinstance(choices, str) or not kinds.issuperset(map(type, transforms)):
        raise ValueError(
            f"attack.transforms={choices!r}: expected a list of {', '.join(TRANSFORMS)}, or of "
            "their settings as in conf/countermeasure, for example [identity,blur]"
        )
    return tuple(transforms)


def with_purifier(
    transforms: Sequence[Countermeasure], model: "LatentDiffusion | None"
) -> list[Countermeasure]:
    """Return the transforms, each purifier among them with the model that it noises and denoises
    with.
    """
    return [
        replace(transform, model=model) if isinstance(transform, Purify) else transform
        for transform in transforms
    ]


def transformed(
    transforms: Sequence[Countermeasure],
    photos: Tensor,
    names: Sequence[str],
    seed: int,
    identity: str,
    phase: str,
) -> Tensor:
    """Return each of `photos` (n, 3, h, w) through one of `transforms`, drawn as everything random
    by (seed, identity, its name, phase).
    """

    def through_one(photo: Tensor, name: str) -> Tensor:
        generator = keyed_generator(seed, identity, name, phase)
        index = torch.randint(len(transforms), (), generator=generator)
        return transforms[index](photo, generator)

    return torch.stack([through_one(*pair) for pair in zip(photos, names, strict=True)])
