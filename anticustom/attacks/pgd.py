"""Projected gradient ascent against a surrogate: FSMG, ASPL, AdvDM, SimAC and their
recombinations.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from anticustom import countermeasures, surrogates
from anticustom.attacks.inputs import AttackInputs, SurrogateInputs
from anticustom.attacks.members import Member, keep, resume
from anticustom.checks import check_count
from anticustom.chunks import Chunks
from anticustom.diffusion import LatentDiffusion, Posterior, Precision
from anticustom.draws import Draw, draw_batches, joined
from anticustom.ensembles import Combination, JointLoss
from anticustom.finetuning import encode
from anticustom.images import check_eps, project, sign_step
from anticustom.losses import Loss, Terms
from anticustom.surrogates import SurrogateSchedule
from anticustom.timestep_policies import TimestepPolicy, image_gradient_and_loss


@dataclass(frozen=True, kw_only=True)
class PGD:
    """Sign steps up the loss of a surrogate, which its schedule moves between the phases of the
    attack.

    `eps` (L-infinity radius) and `step_size` are in grey levels, `steps` counts the perturbation
    steps of each of the schedule's iterations. The timestep policy is asked once, with the
    surrogate as it was loaded.

    Each step climbs the mean loss over `draws_per_step` timesteps and noises of each photo, which
    share one pass of the VAE; the papers' methods draw one.

    With `transforms`, names or settings of counter-measures, the steps ascend the expectation over
    transformations: the mean loss of each photo through `transform_samples` of them, drawn anew in
    every step. What the loss compares a photo with goes through the same transform. Purification
    among them takes the inputs' `purifier`.

    The steps compute in `precision`, the surrogate trains in `training_precision` (None: the same),
    in which it is to be loaded.

    Of several surrogates, each moves by the schedule and has its own timesteps and noise;
    `combination` says how one perturbation climbs against all. With `shared_class_images` all
    preserve the class as the first draws it, as in Anti-DreamBooth's released code.
    """

    eps: float
    step_size: float
    steps: int
    loss: Loss
    timestep_policy: TimestepPolicy
    surrogate_schedule: SurrogateSchedule
    instance_prompt: str
    class_prompt: str
    precision: Precision = "float32"
    training_precision: Precision | None = None
    draws_per_step: int = 1
    transforms: Sequence[str | countermeasures.Countermeasure] = ()
    transform_samples: int = 1
    combination: Combination = field(default_factory=JointLoss)
    shared_class_images: bool = False

    needs_surrogate: ClassVar[bool] = True
    NEUTRAL: ClassVar[dict] = {
        "draws_per_step": 1,
        "transforms": [],
        "transform_samples": 1,
        "shared_class_images": False,
    }

    @staticmethod
    def decisive(settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings that decide the result: some do only beside others."""
        silent = set()
        if settings.get("training_precision") == settings.get("precision"):
            silent.add("training_precision")
        if not settings.get("transforms"):
            silent.add("transform_samples")
        if not settings.get("others"):
            silent.add("combination")
        return {key: value for key, value in settings.items() if key not in silent}

    @property
    def needs_class_images(self) -> bool:
        training = self.surrogate_schedule.training
        return training is not None and training.preserves_prior

    @property
    def purifiers(self) -> list[countermeasures.Purify]:
        return [one for one in self.transforms if isinstance(one, countermeasures.Purify)]

    def __post_init__(self):
        check_eps(self.eps)
        if not self.step_size > 0:
            raise ValueError(f"attack.step_size={self.step_size!r}: expected grey levels above 0")
        for name in ("steps", "draws_per_step", "transform_samples"):
            check_count(f"attack.{name}", getattr(self, name))
        object.__setattr__(self, "transforms", countermeasures.transforms_of(self.transforms))

    def __call__(self, inputs: AttackInputs) -> Tensor:
        """Return protected images: float32 (n, 3, h, w) in [0, 1] on the CPU, within eps of
        `inputs.photos`.

        Raises FloatingPointError when a loss is not finite.
        """
        schedule = self.surrogate_schedule
        members = [
            self._start(inputs, source, inputs.surrogates[0 if self.shared_class_images else k])
            for k, source in enumerate(inputs.surrogates)
        ]
        first, protected = resume(inputs, members)
        chunks = Chunks()
        for member, source in zip(members, inputs.surrogates, strict=True):
            if not member.allowed:
                member.allowed = self._allowed(inputs, source)
        for iteration in range(first, schedule.iterations):
            save = partial(keep, inputs, members, iteration, protected)
            with ExitStack() as attackable:
                for member in members:
                    member.surrogate.keep = save
                    # which holds the member in turn: with it, the model would outlive the attack
                    attackable.callback(setattr, member.surrogate, "keep", lambda: None)
                    attackable.enter_context(
                        schedule.attackable(member.surrogate, iteration, inputs.progress)
                    )
                climb = partial(self._climb, inputs, iteration, chunks)
                protected, own = self.combination(climb, members, protected)
            for member, follows in zip(members, own, strict=True):
                schedule.follow(member.surrogate, iteration, inputs.names, follows, inputs.progress)
            keep(inputs, members, iteration + 1, protected)
        return protected.cpu()

    def _start(
        self, inputs: AttackInputs, source: SurrogateInputs, of_class: SurrogateInputs
    ) -> Member:
        surrogate = surrogates.start(
            self.surrogate_schedule,
            source.model,
            source.draws,
            instance_prompt=self.instance_prompt,
            class_prompt=self.class_prompt,
            clean=inputs.clean_set,
            class_images=of_class.class_images if self.needs_class_images else None,
            seed=inputs.seed,
        )
        with torch.no_grad(), self.own_precision(source.model):
            clean = encode(source.model, inputs.names, inputs.photos).posterior
        return Member(surrogate, [], clean)

    def own_precision(self, model: LatentDiffusion) -> AbstractContextManager[None]:
        """Let a surrogate compute meanwhile as the steps do, however it was loaded."""
        return model.computing_in(self.precision if self.training_precision else None)

    def _allowed(self, inputs: AttackInputs, source: SurrogateInputs) -> list[Tensor]:
        with self.own_precision(source.model):
            return self.timestep_policy.allowed(
                source.model,
                inputs.photos.to(source.model.device),
                inputs.names,
                self.instance_prompt,
                source.draws,
                eps=self.eps,
                step_size=self.step_size,
                progress=inputs.progress,
            )

    def _climb(
        self,
        inputs,
        iteration: int,
        chunks: Chunks,
        members: Sequence[Member],
        images: Tensor,
        turn: int,
        turns: int,
    ) -> Tensor:
        """Return the images after an iteration's steps up the sum of the members' losses."""
        every = iteration * turns + turn, self.surrogate_schedule.iterations * turns
        steps = partial(self._ascend, inputs, iteration, every, members, images)
        with ExitStack() as computing:
            for member in members:
                computing.enter_context(self.own_precision(member.surrogate.model))
            return torch.cat(chunks(steps, len(images)))

    def _ascend(
        self,
        inputs,
        iteration: int,
        climbs: tuple[int, int],
        members: Sequence[Member],
        images: Tensor,
        rows: slice,
    ) -> Tensor:
        """Return the photos `rows` after an iteration's steps; `climbs` are how many were made
        before, and how many there are.
        """
        names, count, start = inputs.names[rows], len(images), images[rows]
        clean = inputs.photos[rows].to(images.device)
        draws = [self._draws(f"{iteration} perturb", member, names, rows) for member in members]
        plain = [
            self._objective(member, lambda member=member: member.clean[rows], lambda: start)
            for member in members
        ]
        transforms = countermeasures.with_purifier(self.transforms, inputs.purifier)
        through = partial(
            countermeasures.transformed,
            transforms,
            names=names,
            seed=inputs.seed,
            identity=inputs.identity,
        )
        images, losses = start, []
        for step, draw in enumerate(zip(*draws, strict=True)):
            samples = [plain]
            if self.transforms:
                phases = [
                    f"{iteration} transform {step} {k}" for k in range(self.transform_samples)
                ]
                drawn = [partial(through, phase=phase) for phase in phases]
                samples = [[self._through(one, m, clean, start) for m in members] for one in drawn]
            gradient, loss = _summed(samples, images, draw)
            images = project(sign_step(images, gradient, self.step_size), clean, self.eps)
            losses.append(loss / len(samples) / len(members))
            done = (self.steps * rows.start + (step + 1) * len(images)) // count
            before, total = (self.steps * climb for climb in climbs)
            inputs.progress("perturbation", before + done, total, losses[-1].mean())
        # a gradient that is not finite spoils its image, whose loss comes one step later
        _check_finite([*losses, images.flatten(1).sum(1)], names, iteration)
        return images

    def _draws(self, phase: str, member: Member, names: tuple[str, ...], rows: slice) -> list[Draw]:
        """Return for each step all rows of its draws: a row for each photo, then the same again."""
        many = self.draws_per_step
        draws = draw_batches(
            member.surrogate.draws, phase, names, self.steps * many, member.allowed[rows]
        )
        return [joined(draws[k : k + many]) for k in range(0, len(draws), many)]

    def _objective(
        self, member: Member, clean: Callable[[], Posterior], start: Callable[[], Tensor]
    ) -> Callable[[Tensor, Draw], Terms]:
        """Return the loss against a member, as the mean over the draws of a step."""
        bound = self.loss.bind(
            member.surrogate.model, prompt=self.instance_prompt, clean=clean, start=start
        )

        def over_draws(images: Tensor, draw: Draw) -> Terms:
            posterior, n = bound.model.posterior(images), len(images)
            starts = range(0, n * self.draws_per_step, n)
            every = [bound.of_posterior(posterior, draw[k : k + n]) for k in starts]
            return {name: sum(one[name] for one in every) / len(every) for name in every[0]}

        return over_draws

    def _through(
        self,
        through: Callable[[Tensor], Tensor],
        member: Member,
        clean: Tensor,
        start: Tensor,
    ) -> Callable[[Tensor, Draw], Terms]:
        """Return the loss of images `through` transforms, with its references through the same."""
        objective = self._objective(
            member,
            lambda: member.surrogate.model.posterior(through(clean)),
            lambda: through(start),
        )
        return lambda images, draw: objective(through(images), draw)


def _summed(
    samples: Sequence[Sequence[Callable[[Tensor, Draw], Terms]]],
    images: Tensor,
    draws: Sequence[Draw],
) -> tuple[Tensor, Tensor]:
    """Return the sums over samples and surrogates, each of which has its draw, of the gradients
    with respect to the images and of the losses (n,).
    """
    gradient, loss = torch.zeros_like(images), torch.zeros(len(images)).to(images)
    for objectives in samples:
        for objective, draw in zip(objectives, draws, strict=True):
            own = image_gradient_and_loss(objective, images, draw.to(images.device))
            gradient, loss = gradient + own[0], loss + own[1]
    return gradient, loss


def _check_finite(losses: Sequence[Tensor], names: Sequence[str], iteration: int) -> None:
    """Raise FloatingPointError for a loss that is not finite; `losses` are those of each step."""
    finite = torch.stack(list(losses)).isfinite().cpu()
    if not finite.all():
        step, image = (~finite).nonzero()[0].tolist()
        raise FloatingPointError(
            f"the loss is not finite at iteration {iteration}, perturbation step {step}, photo "
            f"{names[image]}: try precision=float32, or a lower learning rate of the surrogate"
        )
