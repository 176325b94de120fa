"""Which diffusion timesteps an attack draws: for each image a set, from which every step chooses
uniformly.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, Protocol, TypeVar

import torch
from torch import Tensor

from anticustom.checks import check_count
from anticustom.chunks import Chunks
from anticustom.diffusion import LatentDiffusion, Posterior
from anticustom.draws import Draw, Draws, draw_batches, joined
from anticustom.images import project, sign_step
from anticustom.losses import Denoising, Objective, Terms
from anticustom.progress import Progress

Drawn = TypeVar("Drawn")  # a Draw, or what else an objective takes beside the images


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
        for name in ("low", "high"):
            check_count(f"timestep_policy.{name}", getattr(self, name), 0)
        if not self.low <= self.high < 1000:
            raise ValueError(
                f"timestep_policy.low={self.low!r}, high={self.high!r}: expected "
                "0 <= low <= high <= 999"
            )

    def allowed(self, model, images, names, prompt, draws, **settings) -> list[Tensor]:
        return [model.timesteps[self.low : self.high + 1]] * len(images)


@dataclass(frozen=True, kw_only=True)
class AdaptiveGreedy:
    """SimAC's adaptive greedy search (arXiv 2312.07865): keep the timesteps at which the image's
    gradient is large.

    Each round draws `candidates` of an image's surviving timesteps and scores them by the sum of
    the absolute gradient of the loss with respect to the image (in [0, 1]); the window of `window`
    timesteps round the lowest score is deleted (its centre kept `margin` away from both ends), and
    the image moves one step of its own trial perturbation at the highest. It ends when at most
    `keep` survive. The trial perturbation is thrown away: only the timesteps count. With
    `gradient="latents"` the scores are of the gradient with respect to the latents, which costs no
    pass back through the VAE: no more SimAC, but near it.

    All images and candidates of a round are one batch, and share one pass through the VAE; each
    image's outcome is what it would be alone.
    """

    candidates: int = 5
    window: int = 40
    margin: int = 20
    keep: int = 100
    max_rounds: int = 50
    gradient: Literal["image", "latents"] = "image"

    NEUTRAL: ClassVar[dict] = {"gradient": "image"}

    def __post_init__(self):
        if self.gradient not in ("image", "latents"):
            raise ValueError(
                f"timestep_policy.gradient={self.gradient!r}: expected image or latents"
            )
        for name in ("candidates", "window", "keep", "max_rounds"):
            check_count(f"timestep_policy.{name}", getattr(self, name))
        check_count("timestep_policy.margin", self.margin, 0)
        if self.window % 2:
            raise ValueError(f"timestep_policy.window={self.window!r}: expected an even number")
        if self.window > self.keep:  # the last window might take all that is left
            raise ValueError(
                f"timestep_policy.window={self.window!r}: expected at most keep={self.keep}"
            )
        if self.max_rounds * self.window < 1000 - self.keep:
            raise ValueError(
                f"timestep_policy.max_rounds={self.max_rounds}: rounds of window={self.window} "
                f"leave more than keep={self.keep} of 1000 timesteps: raise max_rounds or window"
            )
        if self.margin > 500:
            raise ValueError(
                f"timestep_policy.margin={self.margin!r}: expected at most half the 1000 timesteps"
            )

    def allowed(
        self, model, images, names, prompt, draws, *, eps, step_size, progress
    ) -> list[Tensor]:
        gradients = PosteriorGradients(Denoising().bind(model, prompt=prompt))
        searches = [
            _Search(image, name, model.timesteps) for image, name in zip(images, names, strict=True)
        ]
        total, chunks = len(model.timesteps), Chunks()
        for round_number in range(self.max_rounds):
            active = [search for search in searches if len(search.survivors) > self.keep]
            if not active:
                return [search.survivors for search in searches]
            phase = f"search {round_number}"
            names = [search.name for search in active]
            survivors = [search.survivors for search in active]
            # the last of them gives the trial step its noise
            drawn = draw_batches(draws, phase, names, self.candidates + 1, survivors)
            scores = self._round(gradients, active, drawn, chunks, eps, step_size, total)
            left = max(len(search.survivors) for search in searches)
            progress(
                "greedy search",
                min(total - left, total - self.keep),
                total - self.keep,
                scores.mean(),
            )
        if any(len(search.survivors) > self.keep for search in searches):
            raise ValueError(
                f"timestep_policy: more than keep={self.keep} timesteps survive "
                f"max_rounds={self.max_rounds} rounds; "
                "raise max_rounds or window"
            )
        return [search.survivors for search in searches]

    def _round(
        self, gradients, active, drawn: list[Draw], chunks: Chunks, eps, step_size, total: int
    ) -> Tensor:
        """Delete a window of every active image's timesteps and move it one step; return the scores
        of its candidates, (images, candidates).
        """
        images = torch.stack([search.image for search in active])
        parts = chunks(
            lambda rows: self._scores(gradients, images[rows], [draw[rows] for draw in drawn]),
            len(images),
        )
        scores, gradient = (torch.cat(part) for part in zip(*parts, strict=True))
        candidates = torch.stack([draw.timesteps for draw in drawn[: self.candidates]], 1)
        worst = candidates.gather(1, scores.argmin(1, keepdim=True))[:, 0]
        moved = sign_step(images, gradient, step_size)
        for k, search in enumerate(active):
            search.image = project(moved[k], search.start, eps)
            search.delete(worst[k].item(), self.window, self.margin, total)
        return scores

    def _scores(
        self, gradients: "PosteriorGradients", images: Tensor, drawn: list[Draw]
    ) -> tuple[Tensor, Tensor]:
        """Return the scores of the candidates, (n, candidates) on the CPU, and the gradient of
        the images at the best, (n, 3, h, w).
        """
        images = images.detach().requires_grad_()
        posterior = gradients.objective.model.posterior(images)
        *tried, last = drawn
        gradients_of_all = gradients.by_posterior(posterior, joined(tried))
        scores = []
        for k in range(len(tried)):
            gradient = gradients_of_all[k * len(images) : (k + 1) * len(images)]
            if self.gradient == "image":
                gradient = by_image(images, posterior, gradient)
            else:
                gradient = gradient.mean
            scores.append(gradient.abs().flatten(1).sum(1))
        scores = torch.stack(scores, 1).cpu()
        candidates = torch.stack([draw.timesteps for draw in tried], 1)
        best = candidates.gather(1, scores.argmax(1, keepdim=True))[:, 0]
        trial = gradients.by_posterior(posterior, replace(last, timesteps=best))
        return scores, by_image(images, posterior, trial)


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
    objective: Callable[[Tensor, Drawn], Terms], images: Tensor, draw: Drawn
) -> tuple[Tensor, Tensor]:
    """Return the gradient of each image's own loss with respect to it, (n, 3, h, w), and these
    losses, (n,).
    """
    images = images.detach().requires_grad_()
    loss = sum(objective(images, draw).values())
    return torch.autograd.grad(loss.sum(), images)[0], loss.detach()


@dataclass(frozen=True)
class PosteriorGradients:
    """Gradients of an objective by the posteriors of images, as many at once as memory holds."""

    objective: Objective
    chunks: Chunks = field(default_factory=Chunks)

    def by_posterior(self, posterior: Posterior, draw: Draw) -> Posterior:
        """Return the gradient of the loss of each row of `draw`, whose rows repeat the n images in
        turn, with respect to mean and standard deviation of its image's posterior: each
        (rows, c, h, w), on the posterior's device.
        """
        repeated = posterior.repeated(len(draw.timesteps) // len(posterior.mean))
        draw = draw.to(repeated.mean.device)

        def of_rows(rows: slice) -> tuple[Tensor, ...]:
            part = repeated[rows]
            leaves = [values.detach().requires_grad_() for values in (part.mean, part.std)]
            loss = sum(self.objective.of_posterior(Posterior(*leaves), draw[rows]).values())
            return torch.autograd.grad(loss.sum(), leaves, materialize_grads=True)

        parts = self.chunks(of_rows, len(draw.timesteps))
        return Posterior(*(torch.cat(part) for part in zip(*parts, strict=True)))


def by_image(images: Tensor, posterior: Posterior, gradient: Posterior) -> Tensor:
    """Return the gradient by `images`, (n, 3, h, w), of that by their posterior: a pass back
    through the VAE, after which its pass forward may be used again.
    """
    outputs, given = (posterior.mean, posterior.std), (gradient.mean, gradient.std)
    return torch.autograd.grad(outputs, images, given, retain_graph=True)[0]
