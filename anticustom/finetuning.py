"""Fine-tuning with prior preservation (DreamBooth's loss): how surrogates move, and how
customizers train.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from anticustom.diffusion import LatentDiffusion, Posterior
from anticustom.draws import Draws, joined
from anticustom.losses import denoising


@dataclass(frozen=True)
class EncodedPhotos:
    """Photos as a fine-tuning sees them: their names and the VAE posteriors, computed once because
    the VAE stands still.
    """

    names: tuple[str, ...]
    posterior: Posterior

    def __len__(self) -> int:
        return len(self.names)


@torch.no_grad()
def encode(
    model: LatentDiffusion, names: Sequence[str], images: Tensor, batch: int = 8
) -> EncodedPhotos:
    """Return the photos `images` (n, 3, h, w) encoded for fine-tuning, `batch` at a time."""
    parts = [model.posterior(chunk.to(model.device)) for chunk in images.split(batch)]
    posterior = Posterior(torch.cat([p.mean for p in parts]), torch.cat([p.std for p in parts]))
    return EncodedPhotos(tuple(names), posterior)


@dataclass(frozen=True, kw_only=True)
class FineTuning:
    """Settings of a fine-tuning: AdamW on instance and class images, `batch_size` of each a step.

    `order="continue"` goes through all images in turn across calls, `"restart"` begins at the
    first image in every call; `optimizer="keep"` carries AdamW's state across calls, `"per_call"`
    rebuilds it. Anti-DreamBooth's released code restarts and rebuilds (every three steps), and
    clips no gradient. `optimizer_states="8bit"` keeps AdamW's moments quantized in blocks
    (bitsandbytes, arXiv 2110.02861): a quarter of the memory, and slightly other steps.
    """

    learning_rate: float
    batch_size: int = 1
    prior_weight: float = 1.0
    weight_decay: float = 1e-2
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    gradient_clip: float | None = 1.0
    order: Literal["continue", "restart"] = "continue"
    optimizer: Literal["keep", "per_call"] = "keep"
    optimizer_states: Literal["32bit", "8bit"] = "32bit"

    NEUTRAL: ClassVar[dict] = {"optimizer_states": "32bit"}

    @property
    def preserves_prior(self) -> bool:
        """Whether it trains on class images at all."""
        return self.prior_weight > 0

    def __post_init__(self):
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate={self.learning_rate!r}: expected a number above 0")
        if not isinstance(self.batch_size, int) or self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size!r}: expected an integer of at least 1")
        if not self.prior_weight >= 0:
            raise ValueError(f"prior_weight={self.prior_weight!r}: expected at least 0")
        if self.gradient_clip is not None and not self.gradient_clip > 0:
            raise ValueError(f"gradient_clip={self.gradient_clip!r}: expected above 0, or null")
        if self.order not in ("continue", "restart"):
            raise ValueError(f"order={self.order!r}: expected continue or restart")
        if self.optimizer not in ("keep", "per_call"):
            raise ValueError(f"optimizer={self.optimizer!r}: expected keep or per_call")
        if self.optimizer_states not in ("32bit", "8bit"):
            raise ValueError(f"optimizer_states={self.optimizer_states!r}: expected 32bit or 8bit")


class Trainer:
    """Trains `parameters` of `model`; holds what continues across calls: AdamW's state and the
    place in each photo set.
    """

    def __init__(
        self,
        model: LatentDiffusion,
        parameters: Iterable[nn.Parameter],
        settings: FineTuning,
        *,
        instance_prompt: str,
        class_prompt: str,
    ):
        self.model = model
        self.parameters = list(parameters)
        self.settings = settings
        self.prompts = [instance_prompt, class_prompt]
        self.places: dict[str, int] = {}
        self.optimizer = self._new_optimizer()

    def _new_optimizer(self) -> torch.optim.Optimizer:
        s = self.settings
        shared = {"lr": s.learning_rate, "betas": tuple(s.betas), "eps": s.epsilon}
        shared["weight_decay"] = s.weight_decay
        if s.optimizer_states == "8bit":
            from bitsandbytes.optim import AdamW8bit  # takes seconds to import

            return AdamW8bit(self.parameters, **shared)
        # one pass over the weights; in bfloat16 it would round less than the released code does
        fused = all(parameter.dtype == torch.float32 for parameter in self.parameters)
        return torch.optim.AdamW(self.parameters, **shared, fused=fused)

    def train(
        self,
        instances: EncodedPhotos,
        classes: EncodedPhotos | None,
        steps: int,
        draws: Draws,
        phase: str,
        *,
        photo_set: str,
        first_step: int = 0,
        callback: Callable[[int, Tensor], None] = lambda step, loss: None,
    ) -> Tensor:
        """Train from step `first_step` up to `steps`; return the losses, one per step (on the
        model's device).

        `photo_set` names the instances' place that continues across calls; the draws of a step are
        keyed by `phase` and the step's number. `callback(step, loss)` runs after every step.
        """
        if self.settings.optimizer == "per_call" and first_step == 0:
            self.optimizer = self._new_optimizer()
        if self.settings.order == "restart" and first_step == 0:
            self.places.clear()
        for parameter in self.parameters:
            parameter.requires_grad_(True)
        losses = []
        try:
            for step in range(first_step, steps):
                losses.append(self._step(instances, classes, draws, f"{phase} {step}", photo_set))
                callback(step, losses[-1])
        finally:
            for parameter in self.parameters:
                parameter.requires_grad_(False)
                parameter.grad = None
        return torch.stack(losses) if losses else torch.zeros(0)

    def _step(self, instances, classes, draws: Draws, phase: str, photo_set: str) -> Tensor:
        model, s = self.model, self.settings
        sets = {"instance": (instances, photo_set)}
        if s.preserves_prior:
            sets["class"] = (classes, "class")
        posteriors, rows = [], []
        for kind, (photos, place) in sets.items():
            chosen = self._next(place, len(photos))
            posteriors += [photos.posterior[i : i + 1] for i in chosen]
            keys = [f"{kind} {k} {photos.names[i]}" for k, i in enumerate(chosen)]
            rows += [draws(phase, key, 1, model.timesteps) for key in keys]
        draw = joined(rows).to(model.device)
        posterior = Posterior(
            torch.cat([photo.mean for photo in posteriors]),
            torch.cat([photo.std for photo in posteriors]),
        )
        prompts = self.prompts[: len(sets)]
        embeddings = model.text_embeddings(prompts).repeat_interleave(s.batch_size, dim=0)
        per_image = denoising(model, model.latents(posterior, draw.posterior), draw, embeddings)
        means = per_image.view(len(sets), s.batch_size).mean(1)
        loss = means[0] + s.prior_weight * means[1] if s.preserves_prior else means[0]
        loss.backward()
        if s.gradient_clip is not None:
            nn.utils.clip_grad_norm_(self.parameters, s.gradient_clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def _next(self, photo_set: str, count: int) -> list[int]:
        place = self.places.get(photo_set, 0)
        self.places[photo_set] = place + self.settings.batch_size
        return [(place + k) % count for k in range(self.settings.batch_size)]

    def state(self, device: str | None = None) -> tuple[dict[str, Tensor], dict]:
        """Return copies, on `device` or where they are, of all that training changes: tensors
        (weights, AdamW's moments), and the places as plain numbers.
        """

        def copy(of: Tensor) -> Tensor:
            return of.detach().to(device or of.device, copy=True)

        tensors = {f"parameter.{k}": copy(p) for k, p in enumerate(self.parameters)}
        for k, parameter in enumerate(self.parameters):
            moments = self.optimizer.state.get(parameter, {})
            for name, value in moments.items():
                tensors[f"adam.{k}.{name}"] = copy(torch.as_tensor(value))
        return tensors, {"places": dict(self.places)}

    def restore(self, tensors: dict[str, Tensor], facts: dict) -> None:
        """Go back to a `state`."""
        with torch.no_grad():
            for k, parameter in enumerate(self.parameters):
                parameter.copy_(tensors[f"parameter.{k}"])
        self.optimizer.state.clear()
        for key, value in tensors.items():
            if key.startswith("adam."):
                _, k, name = key.split(".")
                parameter = self.parameters[int(k)]
                moments = self.optimizer.state[parameter]
                moments[name] = self._moment(name, value, parameter)
        self.places = dict(facts["places"])

    def _moment(self, name: str, value: Tensor, parameter: nn.Parameter) -> Tensor | int:
        """Return a copy of a saved moment where the optimizer wants it."""
        if name != "step":
            return value.to(parameter.device, copy=True)
        if self.settings.optimizer_states == "8bit":
            return int(value)
        fused = self.optimizer.defaults["fused"]
        return value.to(parameter.device if fused else "cpu", copy=True)


def all_weights(model: LatentDiffusion) -> list[nn.Parameter]:
    """Return what DreamBooth trains: the UNet and the text encoder."""
    return [*model.unet.parameters(), *model.text_encoder.parameters()]
