"""How one perturbation is made against several surrogates."""

from collections.abc import Sequence
from typing import Protocol, TypeVar

import torch
from torch import Tensor

Surrogate = TypeVar("Surrogate")


class Combination(Protocol):
    def groups(self, surrogates: Sequence[Surrogate]) -> list[list[Surrogate]]:
        """Return the surrogates in groups.

        In each iteration every group perturbs the same photos, each step up the sum of the group's
        losses. Its surrogates then learn the photos that the group perturbed.
        """

    def merged(self, perturbed: Sequence[Tensor]) -> Tensor:
        """Return the photos that are protected after an iteration, from those of every group."""


class JointLoss:
    """Every step climbs the sum of all surrogates' losses, as Anti-DreamBooth describes it."""

    def groups(self, surrogates):
        return [list(surrogates)]

    def merged(self, perturbed):
        (protected,) = perturbed
        return protected


class MeanImage:
    """Each surrogate perturbs the photos on its own, and the mean of the results is kept.

    Each surrogate learns its own result, as in Anti-DreamBooth's released code. Where the
    surrogates disagree, the mean moves less than a step.
    """

    def groups(self, surrogates):
        return [[surrogate] for surrogate in surrogates]

    def merged(self, perturbed):
        return torch.stack(list(perturbed)).mean(0)
