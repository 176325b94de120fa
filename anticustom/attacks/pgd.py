"""Projected gradient ascent against a surrogate: FSMG, ASPL, AdvDM, SimAC and their
recombinations.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from anticustom import surrogates
from anticustom.attacks.inputs import AttackInputs
from anticustom.countermeasures import Countermeasure, transformed, transforms_of
from anticustom.draws import Draw, draw_batches
from anticustom.images import check_eps, project, sign_step
from anticustom.losses import Loss, Objective
from anticustom.surrogates import Surrogate, SurrogateSchedule
from anticustom.timestep_policies import TimestepPolicy, image_gradient_and_loss


@dataclass(frozen=True, kw_only=True)
class PGD:
    """Sign steps up the loss of a surrogate, which its schedule moves between the phases of the
    attack.

    `eps` (L-infinity radius) and `step_size` are in grey levels, `steps` counts the perturbation
    steps of each of the schedule's iterations. The timestep policy is asked once, with the
    surrogate as it was loaded.

    With `transforms`, names or settings of counter-measures, the steps ascend the expectation over
    transformations: the mean loss of each photo through `transform_samples` of them, drawn anew in
    every step.
    """

    eps: float
    step_size: float
    steps: int
    loss: Loss
    timestep_policy: TimestepPolicy
    surrogate_schedule: SurrogateSchedule
    instance_prompt: str
    class_prompt: str
    precision: str = "float32"
    transforms: Sequence[str | Countermeasure] = ()
    transform_samples: int = 1

    needs_surrogate: ClassVar[bool] = True

    @property
    def needs_class_images(self) -> bool:
        return self.surrogate_schedule.training is not None

    def __post_init__(self):
        check_eps(self.eps)
        if not self.step_size > 0:
            raise ValueError(f"attack.step_size={self.step_size!r}: expected grey levels above 0")
        if not self.steps >= 1:
            raise ValueError(f"attack.steps={self.steps!r}: expected at least 1")
        if not isinstance(self.transform_samples, int) or self.transform_samples < 1:
            raise ValueError(
                f"attack.transform_samples={self.transform_samples!r}: expected an integer of at "
                "least 1"
            )
        object.__setattr__(self, "transforms", transforms_of(self.transforms))

    def __call__(self, inputs: AttackInputs) -> Tensor:
        """Return protected images: float32 (n, 3, h, w) in [0, 1] on the CPU, within eps of
        `inputs.photos`.

        Raises FloatingPointError when a loss is not finite.
        """
        model = inputs.model
        clean = inputs.photos.to(model.device)
        surrogate = surrogates.start(
            self.surrogate_schedule,
            model,
            inputs.draws,
            instance_prompt=self.instance_prompt,
            class_prompt=self.class_prompt,
            clean=inputs.clean_set,
            class_images=inputs.class_images if self.needs_class_images else None,
        )
        first, protected, allowed = self._resume(inputs, surrogate)
        if allowed is None:
            allowed = self.timestep_policy.allowed(
                model,
                clean,
                inputs.names,
                self.instance_prompt,
                inputs.draws,
                eps=self.eps,
                step_size=self.step_size,
                progress=inputs.progress,
            )
        with torch.no_grad():
            posterior = model.posterior(clean)
        for iteration in range(first, self.surrogate_schedule.iterations):
            surrogate.keep = partial(self._keep, inputs, surrogate, iteration, protected, allowed)
            with self.surrogate_schedule.attackable(surrogate, iteration, inputs.progress):
                objective = self.loss.bind(
                    model, prompt=self.instance_prompt, clean=posterior, start=protected
                )
                protected = self._ascend(inputs, objective, protected, clean, allowed, iteration)
            self.surrogate_schedule.follow(
                surrogate, iteration, inputs.names, protected, inputs.progress
            )
            self._keep(inputs, surrogate, iteration + 1, protected, allowed)
        return protected.cpu()

    def _ascend(self, inputs, objective, protected, clean, allowed, iteration) -> Tensor:
        draws = draw_batches(
            inputs.draws, f"{iteration} perturb", inputs.names, self.steps, allowed
        )
        total = self.steps * self.surrogate_schedule.iterations
        losses = []
        for step, draw in enumerate(draws):
            expected = self._expected(objective, inputs, f"{iteration} transform {step}")
            gradient, loss = image_gradient_and_loss(expected, protected, draw.to(clean.device))
            protected = project(sign_step(protected, gradient, self.step_size), clean, self.eps)
            losses.append(loss)
            inputs.progress("perturbation", iteration * self.steps + step + 1, total, loss.mean())
        # a gradient that is not finite spoils its image, whose loss comes one step later
        losses.append(protected.flatten(1).sum(1))
        finite = torch.stack(losses).isfinite().cpu()
        if not finite.all():
            step, image = (~finite).nonzero()[0].tolist()
            raise FloatingPointError(
                f"the loss is not finite at iteration {iteration}, perturbation step {step}, photo "
                f"{inputs.names[image]}: try precision=float32, or a lower learning rate of the "
                "surrogate"
            )
        return protected

    def _expected(self, objective: Objective, inputs, phase: str) -> Objective:
        if not self.transforms:
            return objective
        key = (inputs.names, inputs.seed, inputs.identity)

        def expected(images: Tensor, draw: Draw) -> dict[str, Tensor]:
            samples = [
                objective(transformed(self.transforms, images, *key, f"{phase} {k}"), draw)
                for k in range(self.transform_samples)
            ]
            return {term: sum(one[term] for one in samples) / len(samples) for term in samples[0]}

        return expected

    def _keep(self, inputs, surrogate: Surrogate, iteration: int, protected, allowed) -> None:
        """Save a checkpoint, if one is due, from which `iteration` goes on."""
        if not inputs.checkpoint.due():
            return
        tensors, facts = surrogate.trainer.state() if surrogate.trainer else ({}, {})
        own = {"protected": protected} | {f"allowed.{k}": a for k, a in enumerate(allowed)}
        inputs.checkpoint.save(
            tensors | own, facts | {"iteration": iteration, "fitted_steps": surrogate.fitted_steps}
        )

    def _resume(self, inputs, surrogate: Surrogate) -> tuple[int, Tensor, list[Tensor] | None]:
        device = inputs.model.device
        saved = inputs.checkpoint.load()
        if saved is None:
            return 0, inputs.photos.to(device), None
        tensors, facts = saved
        if surrogate.trainer:
            surrogate.trainer.restore(tensors, facts)
        surrogate.fitted_steps = facts["fitted_steps"]
        allowed = [tensors[f"allowed.{k}"] for k in range(len(inputs.names))]
        return facts["iteration"], tensors["protected"].to(device), allowed
