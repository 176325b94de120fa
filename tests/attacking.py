"""Attacks killed on their way, perturbation steps found by hand, and draws that are noted."""

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from helpers import Killed, Memory, Reports
from torch import Tensor

from anticustom.attacks.inputs import AttackInputs
from anticustom.draws import Draw, SeededDraws, draw_batches
from anticustom.images import project, sign_step


def killed(attack, inputs: Callable[..., AttackInputs], kill_at: tuple[str, int]) -> Memory:
    """Return the checkpoint of an attack that is killed where its progress is at `kill_at`."""
    memory = Memory()
    with pytest.raises(Killed):
        attack(inputs(checkpoint=memory, progress=Reports(kill_at)))
    return memory


def resumed(attack, inputs: Callable[..., AttackInputs], kill_at: tuple[str, int]) -> Tensor:
    """Return the photos of an attack that is killed in its second iteration and run again."""
    memory = killed(attack, inputs, kill_at)
    assert memory.saved[1]["iteration"] == 1
    return attack(inputs(checkpoint=memory))


def drawn(inputs: AttackInputs, count: int) -> list[Draw]:
    """Return the draws of the first perturbation phase, of which all timesteps are allowed."""
    (source,) = inputs.surrogates
    allowed = [source.model.timesteps] * len(inputs.names)
    return draw_batches(source.draws, "0 perturb", inputs.names, count, allowed)


def ascended(photos: Tensor, steps: int, gradient: Callable[[Tensor, int], Tensor]) -> Tensor:
    """Return photos after steps of 0.6375 within 8 grey levels along the sign of a gradient, which
    is a function of the images and the step.
    """
    images = photos
    for step in range(steps):
        images = project(sign_step(images, gradient(images, step), 0.6375), photos, 8)
    return images


def same(images: Tensor, others: Tensor) -> bool:
    """Whether images are equal but for pixels whose tiny gradient rounding may turn."""
    return ((images - others).abs() < 1e-6).float().mean() > 0.99


def unlike(images: Tensor, others: Tensor) -> bool:
    """Whether a twentieth of the pixels differ visibly."""
    return ((images - others).abs() > 1e-3).float().mean() > 0.05


@dataclass(frozen=True)
class NotedDraws(SeededDraws):
    """Draws that note what they are asked for: (phase, name, count, allowed timesteps)."""

    noted: list[tuple] = field(default_factory=list)

    def __call__(self, phase: str, name: str, count: int, allowed: Tensor) -> Draw:
        self.noted.append((phase, name, count, allowed.tolist()))
        return super().__call__(phase, name, count, allowed)
