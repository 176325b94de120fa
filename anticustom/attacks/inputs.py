"""What an attack is given besides its settings."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor

from anticustom.diffusion import LatentDiffusion
from anticustom.draws import Draws
from anticustom.progress import Checkpoint, NoCheckpoint, Progress, silent


@dataclass
class AttackInputs:
    """One identity's photos and what it takes to attack a surrogate with them.

    `photos` (n, 3, h, w) in [0, 1] is set B, with its `names`; `clean_set` and `class_images` are
    names and images. Models and class images are made when an attack first asks for them; the
    model is the attack's to change.
    """

    identity: str
    names: tuple[str, ...]
    photos: Tensor
    seed: int
    clean_set: tuple[tuple[str, ...], Tensor]
    draws: Draws
    load_model: Callable[[], LatentDiffusion]
    load_class_images: Callable[[], tuple[tuple[str, ...], Tensor]]
    progress: Progress = silent
    checkpoint: Checkpoint = field(default_factory=NoCheckpoint)

    @cached_property
    def model(self) -> LatentDiffusion:
        return self.load_model()

    @cached_property
    def class_images(self) -> tuple[tuple[str, ...], Tensor]:
        return self.load_class_images()
