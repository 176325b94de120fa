"""Projected gradient ascent against surrogates: FSMG, ASPL, AdvDM, SimAC and their
recombinations.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from anticustom import countermeasures, surrogates
from anticustom.attacks.inputs import AttackInputs
from anticustom.attacks.members import Member, keep, resume
from anticustom.attacks.views import drawn_views, gradient_and_loss, step_loss
from anticustom.checks import check_count
from anticustom.chunks import Chunks
from anticustom.diffusion import LatentDiffusion, Precision
from anticustom.ensembles import Combination, JointLoss
from anticustom.finetuning import encode
from anticustom.images import check_eps, project, sign_step
from anticustom.losses import Loss
from anticustom.surrogates import SurrogateSchedule
from anticustom.timestep_policies import TimestepPolicy


@dataclass(frozen=True, kw_only=True)
class PGD:
    """Sign steps up the loss of surrogates, which a schedule moves between the steps' phases.

    `eps` (L-infinity radius) and `step_size` are in grey levels. `steps` counts the perturbation
    steps of each of the schedule's iterations. The timestep policy is asked once, with each
    surrogate as it was loaded.

    Each step climbs the mean loss over `draws_per_step` timesteps and noises of each photo, which
    share one pass of the VAE. The papers' methods draw one.

    With `transforms`, names or settings of counter-measures, the steps ascend the expectation over
    transformations: the mean loss of each photo through `transform_samples` of them, drawn anew in
    every step. A reference that the loss compares a photo with goes through the same transform.
    Purification among them uses the inputs' `purifier`.

    The steps compute in `precision`, and the surrogate trains in `training_precision` (None: the
    same), in which it is to be loaded.

    Each of several surrogates moves by the schedule and has its own timesteps and noise.
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
        return [
            transform
            for transform in self.transforms
            if isinstance(transform, countermeasures.Purify)
        ]

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

        The loop is algorithm 1 of Anti-DreamBooth (arXiv 2303.15433): theta are a surrogate's
        weights, x the clean photos of set B, delta their perturbation; `protected` is x + delta.

        Raises FloatingPointError when a loss is not finite.
        """
        schedule, progress, chunks = self.surrogate_schedule, inputs.progress, Chunks()
        members = [self._member(inputs, number) for number in range(len(inputs.surrogates))]
        groups = self.combination.groups(members)
        first, protected = resume(inputs, members)
        for member in members:
            member.allowed = member.allowed or self._allowed(inputs, member.surrogate)
        for iteration in range(first, schedule.iterations):
            save = partial(keep, inputs, members, iteration, protected)
            with ExitStack() as copies:
                # theta' <- a copy of theta, trained on the clean set A
                for member in members:
                    state = schedule.attackable(member.surrogate, iteration, progress, save)
                    copies.enter_context(state)
                # delta <- steps up the loss of theta' on x + delta, within the eps ball
                perturbed = [
                    self._perturbed(inputs, group, protected, iteration, chunks, turn, len(groups))
                    for turn, group in enumerate(groups)
                ]
            # theta <- theta, trained on x + delta
            for group, photos in zip(groups, perturbed, strict=True):
                for member in group:
                    schedule.follow(member.surrogate, iteration, inputs.names, photos, progress)
            protected = self.combination.merged(perturbed)
            keep(inputs, members, iteration + 1, protected)
        return protected.cpu()

    def _perturbed(
        self,
        inputs: AttackInputs,
        members: Sequence[Member],
        images: Tensor,
        iteration: int,
        chunks: Chunks,
        turn: int,
        turns: int,
    ) -> Tensor:
        """Return `images` after an iteration's steps against a group of `members`, as many images
        at once as memory holds.

        In each iteration `turns` groups climb one after another, this group at `turn`.
        """
        climb, climbs = iteration * turns + turn, self.surrogate_schedule.iterations * turns

        def ascended(rows: slice) -> Tensor:
            def report(kind: str, done: int, total: int, loss: Tensor) -> None:
                done = (total * rows.start + done * (rows.stop - rows.start)) // len(images)
                inputs.progress(kind, total * climb + done, total * climbs, loss)

            names, photos = inputs.names[rows], inputs.photos[rows]
            part = replace(inputs, names=names, photos=photos, progress=report)
            parts = [member[rows] for member in members]
            return self._ascended(part, parts, images[rows], iteration)

        with ExitStack() as computing:
            for member in members:
                computing.enter_context(self.own_precision(member.surrogate.model))
            return torch.cat(chunks(ascended, len(images)))

    def _ascended(
        self, inputs: AttackInputs, members: Sequence[Member], images: Tensor, iteration: int
    ) -> Tensor:
        """Return `images` after an iteration's steps up the sum of the members' losses."""
        start, clean, losses = images, inputs.photos.to(images.device), []
        drawn = [
            member.draws(f"{iteration} perturb", inputs.names, self.steps, self.draws_per_step)
            for member in members
        ]
        bind = partial(step_loss, self.loss, self.instance_prompt, clean=clean, start=start)
        objectives = [[bind(member) for member in members]]
        for step, draws in enumerate(zip(*drawn, strict=True)):
            if self.transforms:  # drawn anew in every step
                phase = f"{iteration} transform {step}"
                views = drawn_views(self.transforms, inputs, phase, self.transform_samples)
                objectives = [[bind(member, view=view) for member in members] for view in views]
            # the gradient of the loss at the drawn timesteps and noise
            gradient, loss = gradient_and_loss(objectives, images, draws)
            # a step along its sign, and the projection into the eps ball
            images = project(sign_step(images, gradient, self.step_size), clean, self.eps)
            inputs.progress("perturbation", step + 1, self.steps, loss.mean())
            losses.append(loss)
        # a gradient that is not finite spoils its image, whose loss comes one step later
        _check_finite([*losses, images.flatten(1).sum(1)], inputs.names, iteration)
        return images

    def _member(self, inputs: AttackInputs, number: int) -> Member:
        """Return the surrogate with this number at the start of the attack."""
        source = inputs.surrogates[number]
        class_source = inputs.surrogates[0] if self.shared_class_images else source
        surrogate = surrogates.start(
            self.surrogate_schedule,
            source.model,
            source.draws,
            instance_prompt=self.instance_prompt,
            class_prompt=self.class_prompt,
            clean=inputs.clean_set,
            class_images=class_source.class_images if self.needs_class_images else None,
            seed=inputs.seed,
        )
        with self.own_precision(source.model):
            clean = encode(source.model, inputs.names, inputs.photos).posterior
        return Member(surrogate, [], clean)

    def own_precision(self, model: LatentDiffusion) -> AbstractContextManager[None]:
        """Let a surrogate compute as the steps do, in whatever precision it was loaded."""
        return model.computing_in(self.precision if self.training_precision else None)

    def _allowed(self, inputs: AttackInputs, surrogate: surrogates.Surrogate) -> list[Tensor]:
        """Return for each photo the timesteps that the policy allows."""
        model = surrogate.model
        with self.own_precision(model):
            return self.timestep_policy.allowed(
                model,
                inputs.photos.to(model.device),
                inputs.names,
                self.instance_prompt,
                surrogate.draws,
                eps=self.eps,
                step_size=self.step_size,
                progress=inputs.progress,
            )


def _check_finite(losses: Sequence[Tensor], names: Sequence[str], iteration: int) -> None:
    """Raise FloatingPointError for a loss that is not finite. `losses` holds those of each step."""
    finite = torch.stack(list(losses)).isfinite().cpu()
    if not finite.all():
        step, image = (~finite).nonzero()[0].tolist()
        raise FloatingPointError(
            f"the loss is not finite at iteration {iteration}, perturbation step {step}, photo "
            f"{names[image]}: try precision=float32, or a lower learning rate of the surrogate"
        )
