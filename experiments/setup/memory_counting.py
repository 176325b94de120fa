"""How much memory attacks and customizers take of a GPU, counted without one from the shapes of
their models.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.autograd.graph import saved_tensors_hooks

from anticustom import adapters, model_files
from anticustom.attacks.pgd import PGD
from anticustom.countermeasures import Purify
from anticustom.customizers.custom_diffusion import CustomDiffusion, text_projections
from anticustom.customizers.lora import LoRA
from anticustom.customizers.textual_inversion import TextualInversion
from anticustom.diffusion import LatentDiffusion
from anticustom.draws import Draw
from anticustom.ensembles import JointLoss
from anticustom.finetuning import FineTuning, all_weights
from anticustom.losses import denoising
from anticustom.surrogates import Alternating, SurrogateSchedule

QUANTIZED = 2.1  # bytes for each weight of AdamW's two moments in 8 bits, with their scales
# what is not counted: the context of CUDA, kernels' working memory, gaps between blocks
UNCOUNTED = 1.5 * 2**30


@dataclass(frozen=True)
class Training:
    """A fine-tuning of `count` weights. `parameters` are the model's own whose gradients it needs;
    for adapters, which the model is not given here, the weights that they go beside: both make
    autograd keep the inputs of their layers.
    """

    settings: FineTuning
    parameters: Sequence[nn.Parameter]
    count: int
    kept: bool = False  # whether a copy of weights and moments is kept, to go back to

    @property
    def bytes(self) -> float:
        """Of gradients, moments and the copy."""
        size = max((p.element_size() for p in self.parameters), default=4)
        moments = QUANTIZED if self.settings.optimizer_states == "8bit" else 2 * size
        return self.count * (size + moments) * (1 + self.kept)


def of_weights(settings: FineTuning, parameters: Sequence[nn.Parameter], **more) -> Training:
    return Training(settings, parameters, sum(p.numel() for p in parameters), **more)


def of_adapters(
    settings: FineTuning, model: LatentDiffusion, unet_layers: Sequence[str], rank: int, **more
) -> Training:
    layers = {"unet": unet_layers, "text_encoder": adapters.TEXT_ATTENTION}
    weights = [
        module.weight
        for part, ends in layers.items()
        for name, module in getattr(model, part).named_modules()
        if any(f".{name}".endswith(f".{end}") for end in ends)
    ]
    # down to the rank from each row's inputs, up to each row
    count = sum(rank * (weight[0].numel() + len(weight)) for weight in weights)
    return Training(settings, weights, count, **more)


def bytes_to_protect(
    attack: Any, models: Sequence[LatentDiffusion], purifier: LatentDiffusion | None = None
) -> float:
    """Return the bytes that an attack on surrogates takes with one photo at a time, through the
    `purifier` if it ascends through one; the weights of the models may be fake. Of an attack with a
    loop of its own only the models are counted.
    """
    every = [*models, purifier] if purifier else models
    fixed = UNCOUNTED + sum(_weights(model) for model in every)
    if not isinstance(attack, PGD):
        return fixed
    kept, rounded = [], []
    for model in models:
        loaded = _weights(model)
        with attack.own_precision(model):
            computing = _weights(model)  # beside those that were loaded, if they differ
            rounded.append(computing if computing != loaded else 0.0)
            own = _kept_for_gradients(model, partial(_perturbed, attack, model))
            own += max((_purified(one, purifier) for one in attack.purifiers), default=0.0)
            kept.append(own)
    at_once = sum if isinstance(attack.combination, JointLoss) else max
    working = max(kept) + at_once(rounded)
    for model in models:
        if training := _of_surrogate(attack.surrogate_schedule, model):
            fixed += training.bytes
            working = max(working, _of_step(model, training))
    return fixed + working


def _of_surrogate(schedule: SurrogateSchedule, model: LatentDiffusion) -> Training | None:
    if schedule.training is None:
        return None
    kept = isinstance(schedule, Alternating) and not schedule.keep_clean_training
    if own := schedule.adapters:
        return of_adapters(schedule.training, model, own.unet_layers, own.rank, kept=kept)
    return of_weights(schedule.training, all_weights(model), kept=kept)


def bytes_to_customize(customizer: Any, model: LatentDiffusion) -> float:
    """Return the bytes that a customizer takes; the model's weights may be fake."""
    settings = customizer.training
    match customizer:
        case LoRA():
            training = of_adapters(settings, model, customizer.unet_layers, customizer.rank)
        case CustomDiffusion():
            training = of_weights(settings, list(text_projections(model).values()))
        case TextualInversion():  # a few rows of the table of embeddings
            training = of_weights(settings, [])
        case _:  # DreamBooth; any other takes at most as much
            training = of_weights(settings, all_weights(model))
    return UNCOUNTED + _weights(model) + training.bytes + _of_step(model, training)


def fake_model(folder: Path, precision: str, gradient_checkpointing: bool) -> LatentDiffusion:
    """Return the model in a diffusers folder, its weights without memory. Call it, and count,
    inside `counting`.
    """
    model = model_files.shapes(folder, precision)
    if gradient_checkpointing:
        model.checkpoint_gradients()
    return model


def counting() -> FakeTensorMode:
    """Return the context in which tensors have shapes but no memory."""
    return FakeTensorMode(allow_non_fake_inputs=True)


def _weights(model: LatentDiffusion) -> float:
    return sum(p.numel() * p.element_size() for p in _parameters(model))


def _parameters(model: LatentDiffusion) -> list[nn.Parameter]:
    parts = (model.vae, model.unet, model.text_encoder)
    return [parameter for part in parts for parameter in part.parameters()]


def _perturbed(attack: Any, model: LatentDiffusion) -> object:
    """One step on one photo, up to its loss."""
    photo = torch.zeros(1, 3, *[model.image_size] * 2)
    objective = attack.loss.bind(
        model,
        prompt=attack.instance_prompt,
        clean=lambda: model.posterior(photo),
        start=lambda: photo,
    )
    posterior = model.posterior(photo.clone().requires_grad_())
    draws = [_draw(1, model.latent_shape) for _ in range(attack.draws_per_step)]
    return [objective.of_posterior(posterior, draw) for draw in draws]


def _purified(purify: Purify, model: LatentDiffusion) -> float:
    """The bytes that the purification of one photo keeps for the gradients."""
    embeddings = model.text_embeddings([purify.prompt])

    def latents() -> Tensor:
        return torch.zeros(1, *model.latent_shape).requires_grad_()

    def step() -> Tensor:
        return model.predict(latents(), torch.zeros(1, dtype=torch.long), embeddings)

    photo = torch.zeros(1, 3, *[model.image_size] * 2).requires_grad_()
    ends = [lambda: model.posterior(photo), lambda: model.decode(latents())]
    kept = sum(_kept_for_gradients(model, end) for end in ends)
    with unset_fake_temporarily():  # how many are below a timestep depends on their values
        steps = len(purify.timesteps(model))
    return kept + steps * _kept_for_gradients(model, step)


def _of_step(model: LatentDiffusion, training: Training) -> float:
    """The bytes that a training step keeps for the gradients."""
    settings = training.settings
    images = settings.batch_size * (2 if settings.prior_weight else 1)

    def step() -> Tensor:
        latents = torch.zeros(images, *model.latent_shape)
        embeddings = model.text_embeddings(["a photo of a person"] * images)
        if not training.parameters:
            embeddings = embeddings.clone().requires_grad_()
        return denoising(model, latents, _draw(images, model.latent_shape), embeddings)

    for parameter in training.parameters:
        parameter.requires_grad_(True)
    try:
        return _kept_for_gradients(model, step)
    finally:
        for parameter in training.parameters:
            parameter.requires_grad_(False)


def _draw(count: int, shape: tuple[int, int, int]) -> Draw:
    normal = torch.zeros(count, *shape)
    return Draw(torch.zeros(count, dtype=torch.long), normal, normal, normal, normal)


def _kept_for_gradients(model: LatentDiffusion, forward: Callable[[], object]) -> float:
    """The bytes that autograd keeps of a forward pass, besides the weights."""
    weights = {parameter.untyped_storage()._cdata for parameter in _parameters(model)}
    kept: dict[int, tuple[Tensor, int]] = {}  # tensors too, for an address may come again

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = (tensor, storage.nbytes())
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        result = forward()  # held until all is counted
    del result
    return float(sum(size for _, size in kept.values()))
