"""Which diffusion timesteps an attack draws: for each image a set, from which every step chooses
uniformly.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torch import Tensor

from anticustom.chunks import Chunks
from anticustom.diffusion import LatentDiffusion, Posterior
from anticustom.draws import Draw, Draws, draw_batches, joined
from anticustom.images import project, sign_step
from anticustom.losses import Denoising, Objective, Terms
from anticustom.progress import Progress


class TimestepPolicy(Protocol):
    def allowed(
        self,
        model: LatentDiffusion,
        images: Tensor,
        names: Sequence[str],
        prompt: str,
        draws: Draws,
        *,
        eps: float,
        step_size: float,
        progress: Progress,
    ) -> list[Tensor]:
        """Return for each image the timesteps that the attack may draw, ascending int64."""


@dataclass(frozen=True)
class Uniform:
    """All timesteps, as AdvDM and Anti-DreamBooth do."""

    def allowed(self, model, images, names, prompt, draws, **settings) -> list[Tensor]:
        return [model.timesteps] * len(images)


@dataclass(frozen=True, kw_only=True)
class Interval:
    """The timesteps from `low` to `high`, both included."""

    low: int
    high: int

    def __post_init__(self):
        if not 0 <= self.low <= self.high < 1000:
            raise ValueError(
                f"timestep_policy.low={self.low!r}, high={self.high!r}: expected "
                "0 <= low <= high <= 999"
            )

    def allowed(self, model, images, names, prompt, draws, **settings) -> list[Tensor]:
        return [model.timesteps[self.low : self.high + 1]] * len(images)


@dataclass(frozen=True, kw_only=True)
class AdaptiveGreedy:
    """SimAC's adaptive greedy search (its section 3.3): keep the timesteps at which the image's
    gradient is large.

    Each round draws `candidates` of an image's surviving timesteps and scores them by the sum of
    the absolute gradient of the loss with respect to the image (in [0, 1]); the window of `window`
    timesteps round the lowest score is deleted (its centre kept `margin` away from both ends), and
    the image moves one step of its own trial perturbation at the highest. It ends when at most
    `keep` survive. The trial perturbation is thrown away: only the timesteps count. With
    `gradient="latents"` the scores are of the gradient with respect to the latents, which costs no
    pass back through the VAE: no more SimAC, but near it.

    All images and candidates of a round are one batch; each image's outcome is what it would be
    alone.
    """

    candidates: int = 5
    window: int = 40
    margin: int = 20
    keep: int = 100
    max_rounds: int = 50
    gradient: Literal["image", "latents"] = "image"

    def __post_init__(self):
        if self.gradient not in ("image", "latents"):
            raise ValueError(
                f"timestep_policy.gradient={self.gradient!r}: expected image or latents"
            )
        for name in ("candidates", "window", "keep", "max_rounds"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"timestep_policy.{name}={getattr(self, name)!r}: expected at least 1"
                )
        if self.window % 2:
            raise ValueError(f"timestep_policy.window={self.window!r}: expected an even number")

    def allowed(
        self, model, images, names, prompt, draws, *, eps, step_size, progress
    ) -> list[Tensor]:
        objective = Denoising().bind(model, prompt=prompt)
        search = [
            _Search(image, name, model.timesteps) for image, name in zip(images, names, strict=True)
        ]
        total, chunks = len(model.timesteps), Chunks()
        for round_number in range(self.max_rounds):
            active = [one for one in search if len(one.survivors) > self.keep]
            if not active:
                return [one.survivors for one in search]
            phase = f"search {round_number}"
            scores = self._round(model, active, objective, draws, phase, eps, step_size, chunks)
            left = max(len(one.survivors) for one in search)
            progress(
                "greedy search",
                min(total - left, total - self.keep),
                total - self.keep,
                scores.mean(),
            )
        if any(len(one.survivors) > self.keep for one in search):
            raise ValueError(
                f"timestep_policy: more than keep={self.keep} timesteps survive "
                f"max_rounds={self.max_rounds} rounds; "
                "raise max_rounds or window"
            )
        return [one.survivors for one in search]

    def _round(
        self, model, active, objective, draws, phase, eps, step_size, chunks: Chunks
    ) -> Tensor:
        """Score every active image's candidates, delete a window, move one step; return the scores
        (images, candidates).
        """
        count = self.candidates
        # the draw after the candidates' gives the trial step its noise; its timestep is
        # the best candidate's
        drawn = draw_batches(
            draws,
            phase,
            [one.name for one in active],
            count + 1,
            [one.survivors for one in active],
        )
        images = torch.stack([one.image for one in active])
        tried = joined(drawn[:count])
        if self.gradient == "image":
            repeated = images.repeat(count, 1, 1, 1)
            tried = tried.to(images.device)
            parts = chunks(
                lambda rows: image_gradient_and_loss(objective, repeated[rows], tried[rows])[0],
                len(repeated),
            )
            gradient = torch.cat(parts)
        else:
            gradient = latents_gradient(objective, images, tried.to(images.device))
        scores = gradient.abs().flatten(1).sum(1).view(count, len(active)).T.cpu()
        candidates = tried.timesteps.view(count, len(active)).T
        best = candidates.gather(1, scores.argmax(1, keepdim=True))[:, 0]
        worst = candidates.gather(1, scores.argmin(1, keepdim=True))[:, 0]

        last = drawn[count]
        trial = replace(last, timesteps=best).to(images.device)
        parts = chunks(
            lambda rows: image_gradient_and_loss(objective, images[rows], trial[rows])[0],
            len(images),
        )
        moved = sign_step(images, torch.cat(parts), step_size)
        for k, one in enumerate(active):
            one.image = project(moved[k], one.start, eps)
            one.delete(worst[k].item(), self.window, self.margin, len(model.timesteps))
        return scores


@dataclass
class _Search:
    """One image's state in the greedy search."""

    start: Tensor
    name: str
    survivors: Tensor

    def __post_init__(self):
        self.image = self.start

    def delete(self, centre: int, window: int, margin: int, total: int) -> None:
        centre = min(max(centre, margin), total - margin)
        low, high = centre - window // 2, centre + window // 2
        self.survivors = self.survivors[(self.survivors < low) | (self.survivors >= high)]


def image_gradient_and_loss(
    objective: Callable[[Tensor, Draw], Terms], images: Tensor, draw: Draw
) -> tuple[Tensor, Tensor]:
    """Return the gradient of each image's own loss with respect to it, (n, 3, h, w), and these
    losses, (n,).
    """
    images = images.detach().requires_grad_()
    loss = sum(objective(images, draw).values())
    return torch.autograd.grad(loss.sum(), images)[0], loss.detach()


def latents_gradient(objective: Objective, images: Tensor, draw: Draw) -> Tensor:
    """Return the gradient of each loss with respect to the mean of its image's posterior, a row for
    each of `draw`, whose rows repeat the images.
    """
    with torch.no_grad():
        posterior = objective.model.posterior(images)
    repeated = posterior.repeated(len(draw.timesteps) // len(images))
    mean = repeated.mean.clone().requires_grad_()
    loss = sum(objective.of_posterior(Posterior(mean, repeated.std), draw).values())
    return torch.autograd.grad(loss.sum(), mean)[0]
