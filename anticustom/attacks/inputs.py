"""The inputs of an attack, besides its settings."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor

from anticustom.diffusion import LatentDiffusion
from anticustom.draws import Draws
from anticustom.progress import Checkpoint, NoCheckpoint, Progress, silent


@dataclass
class SurrogateInputs:
    """A model to attack, its random numbers, and its images of the class.

    The attack may change the model. `load_class_images` returns names and images of the class as
    this model draws it; it is called when they are first needed.
    """

    model: LatentDiffusion
    draws: Draws
    load_class_images: Callable[[], tuple[tuple[str, ...], Tensor]]

    @cached_property
    def class_images(self) -> tuple[tuple[str, ...], Tensor]:
        return self.load_class_images()


@dataclass
class AttackInputs:
    """One identity's photos, and all that an attack on them needs.

    `photos` (n, 3, h, w) in [0, 1] is set B, with its `names`; `clean_set` holds names and images
    of set A. An ensemble has several `surrogates`. An attack that ascends through purification
    purifies with the model `purifier`.
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
