"""The loss of photos as the surrogates see them in one step: through views, at several draws."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from anticustom.attacks.inputs import AttackInputs
from anticustom.attacks.members import Member
from anticustom.countermeasures import Countermeasure, transformed, with_purifier
from anticustom.diffusion import Posterior
from anticustom.draws import Draw
from anticustom.losses import Loss, Terms
from anticustom.timestep_policies import image_gradient_and_loss

View = Callable[[Tensor], Tensor]  # photos (n, 3, h, w) -> the photos as a model sees them
# (photos, the draws of a step) -> named terms of each photo's loss
StepLoss = Callable[[Tensor, Sequence[Draw]], Terms]


def drawn_views(
    transforms: Sequence[Countermeasure], inputs: AttackInputs, phase: str, count: int
) -> list[View]:
    """Return `count` views of the photos, each through a transform drawn for every photo."""
    return [
        partial(
            transformed,
            with_purifier(transforms, inputs.purifier),
            names=inputs.names,
            seed=inputs.seed,
            identity=inputs.identity,
            phase=f"{phase} {k}",
        )
        for k in range(count)
    ]


def step_loss(
    loss: Loss, prompt: str, member: Member, clean: Tensor, start: Tensor, view: View | None = None
) -> StepLoss:
    """Return the loss against a member, as the mean over the draws of a step.

    The model sees the photos through `view`. The loss compares them with the `clean` photos or with
    those at the `start` of the phase, through the same view.
    """
    model = member.surrogate.model

    def clean_posterior() -> Posterior:
        return model.posterior(view(clean)) if view else member.clean

    def phase_start() -> Tensor:
        return view(start) if view else start

    objective = loss.bind(model, prompt=prompt, clean=clean_posterior, start=phase_start)

    def mean_over_draws(images: Tensor, draws: Sequence[Draw]) -> Terms:
        posterior = model.posterior(view(images) if view else images)
        terms = [objective.of_posterior(posterior, draw.to(images.device)) for draw in draws]
        return {name: sum(term[name] for term in terms) / len(terms) for name in terms[0]}

    return mean_over_draws


def gradient_and_loss(
    losses: Sequence[Sequence[StepLoss]], images: Tensor, draws: Sequence[Sequence[Draw]]
) -> tuple[Tensor, Tensor]:
    """Return the sum of the gradients with respect to the images, and the mean of the losses, (n,).

    `losses` holds for each view the losses against the members, `draws` those of each member.
    """
    gradient, loss = torch.zeros_like(images), torch.zeros(len(images)).to(images)
    for view_losses in losses:
        for member_loss, member_draws in zip(view_losses, draws, strict=True):
            part = image_gradient_and_loss(member_loss, images, member_draws)
            gradient, loss = gradient + part[0], loss + part[1]
    return gradient, loss / len(losses) / len(draws)
