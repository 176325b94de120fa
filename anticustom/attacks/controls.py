"""Attacks without a perturbation loop: the unprotected photos, the placebo, and photos that
somebody else protected.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from anticustom.attacks.inputs import AttackInputs
from anticustom.draws import keyed_generator
from anticustom.images import check_eps, read_photo


@dataclass(frozen=True, kw_only=True)
class NoAttack:
    """The photos as they are. `eps` changes nothing; sweeps over attacks and budgets set it."""

    eps: float = 0
    needs_surrogate: ClassVar[bool] = False
    needs_class_images: ClassVar[bool] = False

    def __call__(self, inputs: AttackInputs) -> Tensor:
        return inputs.photos.clone()


@dataclass(frozen=True, kw_only=True)
class Noise:
    """The placebo that every method must beat: random signs times `eps` grey levels."""

    eps: float
    needs_surrogate: ClassVar[bool] = False
    needs_class_images: ClassVar[bool] = False

    def __post_init__(self):
        check_eps(self.eps)

    def __call__(self, inputs: AttackInputs) -> Tensor:
        signs = []
        for name, photo in zip(inputs.names, inputs.photos, strict=True):
            generator = keyed_generator(inputs.seed, inputs.identity, name, "noise")
            signs.append(2 * torch.randint(0, 2, photo.shape, generator=generator) - 1)
        return (inputs.photos + torch.stack(signs) * self.eps / 255).clamp(0, 1)


@dataclass(frozen=True, kw_only=True)
class Precomputed:
    """Photos of set B that somebody else protected: `root/<identity>/<photo>` or, for one
    identity, `root/<photo>`.

    A file belongs to the photo of the same name without suffix. `eps` is the budget that the files
    claim, in grey levels. A file that exceeds it is refused.
    """

    root: str
    eps: float
    needs_surrogate: ClassVar[bool] = False
    needs_class_images: ClassVar[bool] = False

    def __post_init__(self):
        check_eps(self.eps)
        if not Path(self.root).is_dir():
            raise ValueError(f"attack.root={self.root}: no such folder of protected photos")

    def __call__(self, inputs: AttackInputs) -> Tensor:
        folder = folder_of(Path(self.root), inputs.identity)
        size = inputs.photos.shape[-1]
        images = torch.stack([read_photo(self._file(folder, name), size) for name in inputs.names])
        change = (images - inputs.photos).abs().amax((1, 2, 3)) * 255
        for name, levels in zip(inputs.names, change.tolist(), strict=True):
            if round(levels) > self.eps:
                raise ValueError(
                    f"{folder}: the protected {name} differs from the clean photo by "
                    f"{round(levels)} grey levels, "
                    f"more than attack.eps={self.eps:g}: raise attack.eps, or protect at {size} px"
                )
        return images

    @staticmethod
    def _file(folder: Path, name: str) -> Path:
        files = [f for f in sorted(folder.iterdir()) if f.stem == Path(name).stem]
        if len(files) != 1:
            raise ValueError(
                f"{folder}: expected one file named {Path(name).stem}.png, as the photo to "
                f"protect is; found {len(files)}"
            )
        return files[0]


def folder_of(root: Path, identity: str) -> Path:
    """Return the folder of an identity's protected photos.

    It has the identity's name under `root`; where `root` has no folders, it is `root` itself.
    Raises ValueError if there are only folders of others.
    """
    folder = root / identity
    if folder.is_dir():
        return folder
    if any(entry.is_dir() for entry in root.iterdir()):
        raise ValueError(f"{folder}: no such folder of protected photos")
    return root
