"""How one perturbation climbs against several surrogates at once."""

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import torch
from torch import Tensor

Member = TypeVar("Member")
# (surrogates, images, turn, turns) -> the images after the perturbation steps up the sum of the
# surrogates' losses: climb number `turn` of the iteration's `turns`
Climb = Callable[[Sequence[Member], Tensor, int, int], Tensor]


class Combination(Protocol):
    def __call__(
        self, climb: Climb, members: Sequence[Member], images: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the protected images after an iteration, and for each surrogate those that it is
        to follow.
        """


class JointLoss:
    """Every step climbs the sum of all surrogates' losses, as Anti-DreamBooth describes it."""

    def __call__(self, climb, members, images):
        protected = climb(members, images, 0, 1)
        return protected, [protected] * len(members)


class MeanImage:
    """Each surrogate perturbs the images on its own, from the same start; the mean of the results
    is kept, while each surrogate follows its own, as in Anti-DreamBooth's released code.

    Where the surrogates disagree, the mean moves less than a step.
    """

    def __call__(self, climb, members, images):
        turns = len(members)
        own = [climb([member], images, turn, turns) for turn, member in enumerate(members)]
        return torch.stack(own).mean(0), own
