"""What an attack is given besides its settings."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor

from anticustom.diffusion import LatentDiffusion
from anticustom.draws import Draws
from anticustom.progress import Checkpoint, NoCheckpoint, Progress, silent


@dataclass
class SurrogateInputs:
    """A model to attack, which is the attack's to change, its random numbers, and names and images
    of the class as this model draws it, made when first asked for.
    """

    model: LatentDiffusion
    draws: Draws
    load_class_images: Callable[[], tuple[tuple[str, ...], Tensor]]

    @cached_property
    def class_images(self) -> tuple[tuple[str, ...], Tensor]:
        return self.load_class_images()


@dataclass
class AttackInputs:
    """One identity's photos and what it takes to attack surrogates with them.

    `photos` (n, 3, h, w) in [0, 1] is set B, with its `names`; `clean_set` is names and images. An
    ensemble has several `surrogates`. `purifier` is the model of an attack that ascends through
    purification.
    """

    identity: str
    names: tuple[str, ...]
    photos: Tensor
    seed: int
    clean_set: tuple[tuple[str, ...], Tensor]
    surrogates: Sequence[SurrogateInputs]
    purifier: LatentDiffusion | None = None
    progress: Progress = silent
    checkpoint: Checkpoint = field(default_factory=NoCheckpoint)
