"""Randomness: every random number is keyed by what it is for, so that it can be repeated, and
replaced by a recording.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Draw:
    """The random numbers of diffusion losses: one row per image, or per step of one image.

    `timesteps` (n,) int64 in [0, T); the others (n, c, h, w) standard normal: `posterior` samples
    the VAE's posterior of the image, `clean_posterior` that of its clean reference, `noise` is the
    diffusion noise, `ancestral` the noise of one step of ancestral sampling.
    """

    timesteps: Tensor
    noise: Tensor
    posterior: Tensor
    clean_posterior: Tensor
    ancestral: Tensor

    def __getitem__(self, index) -> "Draw":
        return Draw(*(getattr(self, name)[index] for name in self.__dataclass_fields__))

    def to(self, device: torch.device | str) -> "Draw":
        return Draw(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))


def joined(draws: Sequence[Draw]) -> Draw:
    """Return the rows of the first of `draws`, then those of the next."""
    fields = Draw.__dataclass_fields__
    return Draw(*(torch.cat([getattr(draw, name) for draw in draws]) for name in fields))


# (phase, image name, number of steps, the timesteps to choose from) -> one row per step of that
# image
Draws = Callable[[str, str, int, Tensor], Draw]


def keyed_generator(*key: object) -> torch.Generator:
    """Return a CPU generator that is a pure function of `key`."""
    digest = hashlib.sha256(repr(tuple(str(part) for part in key)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


@dataclass(frozen=True)
class SeededDraws:
    """Draws keyed by (seed, identity, image name, phase): neither batching nor other identities
    change them.

    `latent_shape` is (c, h, w).
    """

    seed: int
    identity: str
    latent_shape: tuple[int, int, int]

    def __call__(self, phase: str, name: str, count: int, allowed: Tensor) -> Draw:
        generator = keyed_generator(self.seed, self.identity, name, phase)
        timesteps = allowed[torch.randint(len(allowed), (count,), generator=generator)]
        normal = torch.randn((3, count, *self.latent_shape), generator=generator)
        ancestral = torch.randn((count, *self.latent_shape), generator=generator)
        return Draw(timesteps, *normal, ancestral)


def draw_batches(
    draws: Draws, phase: str, names: Sequence[str], count: int, allowed: Sequence[Tensor]
) -> list[Draw]:
    """Return `count` draws, each with one row per image of `names`; `allowed[i]` are the timesteps
    of image i.
    """
    rows = [draws(phase, name, count, steps) for name, steps in zip(names, allowed, strict=True)]
    fields = Draw.__dataclass_fields__
    return [
        Draw(*(torch.stack([getattr(row, field)[k] for row in rows]) for field in fields))
        for k in range(count)
    ]


def draws_owner(identity: str, number: int) -> str:
    """Return the name under which the surrogate with this number draws against an identity."""
    return f"{identity} surrogate {number}" if number else identity
