"""Count how much memory attacks and customizers take of a GPU, from shapes alone.

`python -m experiments.benchmarks.memory` prints the table of docs/memory.md, for Stable Diffusion
2.1 in mixed precision. No weights are loaded, no GPU is needed, and nothing is measured.
Arguments are overrides of the configuration.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from tabulate import tabulate
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks

from anticustom import adapters, model_files
from anticustom.attacks.pgd import PGD
from anticustom.customizers.custom_diffusion import CustomDiffusion, text_projections
from anticustom.customizers.lora import LoRA
from anticustom.customizers.textual_inversion import TextualInversion
from anticustom.diffusion import LatentDiffusion
from anticustom.draws import Draw
from anticustom.finetuning import FineTuning, all_weights
from anticustom.losses import denoising
from anticustom.surrogates import Alternating
from experiments.benchmarks.random_models import random_model
from experiments.setup.building import build_group
from experiments.setup.composing import composed, memory_presets
from experiments.setup.models import surrogate_precision
from experiments.terminal import quiet_libraries

ATTACKS = ("simac", "aspl", "fsmg", "advdm", "simac_released")
CUSTOMIZERS = ("dreambooth", "lora", "custom_diffusion", "textual_inversion")
GIB = 2**30
QUANTIZED = 2.1  # bytes for each weight of AdamW's two moments in 8 bits, with their scales
UNCOUNTED = 1.5 * GIB  # the context of CUDA, working memory of kernels, gaps between blocks


@dataclass(frozen=True)
class Training:
    """A fine-tuning of `count` weights.

    `parameters` are the weights whose layers keep their inputs for the gradients: the trained ones,
    or those beside which adapters go. With `copied`, weights and moments are kept a second time.
    """

    settings: FineTuning
    parameters: Sequence[nn.Parameter]
    count: int
    copied: bool = False

    @property
    def bytes(self) -> float:
        """Bytes of gradients, moments and the copy."""
        size = max((p.element_size() for p in self.parameters), default=4)
        moments = QUANTIZED if self.settings.optimizer_states == "8bit" else 2 * size
        return self.count * (size + moments) * (1 + self.copied)


def of_weights(
    settings: FineTuning, parameters: Sequence[nn.Parameter], copied: bool = False
) -> Training:
    """Return the training of a model's own weights."""
    return Training(settings, parameters, sum(p.numel() for p in parameters), copied)


def of_adapters(
    settings: FineTuning, model: LatentDiffusion, adapted: Any, copied: bool = False
) -> Training:
    """Return the training of adapters; `adapted` has their `rank` and `unet_layers`."""
    layers = {"unet": adapted.unet_layers, "text_encoder": adapters.TEXT_ATTENTION}
    weights = [
        module.weight
        for part, ends in layers.items()
        for name, module in getattr(model, part).named_modules()
        if any(f".{name}".endswith(f".{end}") for end in ends)
    ]
    # down to the rank from each row's inputs, up to each row
    count = sum(adapted.rank * (weight[0].numel() + len(weight)) for weight in weights)
    return Training(settings, weights, count, copied)


def attack_bytes(config: DictConfig) -> float:
    """Return what an attack on one surrogate takes with one photo at a time.

    Its steps on the photos are counted in the precision in which the surrogate trains.
    """
    settings = OmegaConf.to_container(config, resolve=True)
    attack = build_group(settings, "attack")
    if not isinstance(attack, PGD):
        raise ValueError(f"{type(attack).__name__}: only the steps of PGD can be counted")
    schedule, precision = attack.surrogate_schedule, surrogate_precision(settings["attack"])
    with counting():
        model = fake_model(settings["surrogate_model"], precision, settings["memory"])
        fixed = UNCOUNTED + _weights(model)
        step = _kept_for_gradients(model, lambda: _perturbed(attack, model))
        if schedule.training is None:
            return fixed + step
        copied = isinstance(schedule, Alternating) and not schedule.keep_clean_training
        training = (
            of_adapters(schedule.training, model, schedule.adapters, copied)
            if schedule.adapters
            else of_weights(schedule.training, all_weights(model), copied)
        )
        return fixed + training.bytes + max(step, _of_step(model, training))


def customizer_bytes(config: DictConfig) -> float:
    """Return what a customizer takes."""
    settings = OmegaConf.to_container(config, resolve=True)
    node, customizer = settings["customizer"], build_group(settings, "customizer")
    with counting():
        model = fake_model(node["base_model"], node["precision"], settings["memory"])
        match customizer:
            case LoRA():
                training = of_adapters(customizer.training, model, customizer)
            case CustomDiffusion():
                trained = list(text_projections(model).values())
                training = of_weights(customizer.training, trained)
            case TextualInversion():  # a few rows of the table of embeddings
                training = of_weights(customizer.training, [])
            case _:  # DreamBooth; any other takes at most as much
                training = of_weights(customizer.training, all_weights(model))
        return UNCOUNTED + _weights(model) + training.bytes + _of_step(model, training)


def counting() -> FakeTensorMode:
    """Return a context in which tensors have shapes but no memory."""
    return FakeTensorMode(allow_non_fake_inputs=True)


def fake_model(node: Mapping, precision: str, memory: Mapping) -> LatentDiffusion:
    """Return the model that a node names, with weights that take no memory inside `counting`."""
    folder = model_files.local_folder(node["path"])
    if folder:
        model = model_files.shapes(folder, precision)
    else:
        model = random_model(node["name"], "cpu", precision)
    if memory["gradient_checkpointing"]:
        model.checkpoint_gradients()
    return model


def _weights(model: LatentDiffusion) -> float:
    return sum(p.numel() * p.element_size() for p in _parameters(model))


def _parameters(model: LatentDiffusion) -> list[nn.Parameter]:
    parts = (model.vae, model.unet, model.text_encoder)
    return [parameter for part in parts for parameter in part.parameters()]


def _perturbed(attack: PGD, model: LatentDiffusion) -> object:
    """Compute one step on one photo, up to its loss."""
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


def _of_step(model: LatentDiffusion, training: Training) -> float:
    """Return the bytes that a training step keeps for the gradients."""
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
    """Return the bytes that autograd keeps of a forward pass, besides the weights."""
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


def table(overrides: Sequence[str]) -> list[list[str]]:
    """Return a row for each attack and customizer: its name, and GiB with each preset."""
    rows = [(f"attack={name}", attack_bytes) for name in ATTACKS]
    rows += [(f"customizer={name}", customizer_bytes) for name in CUSTOMIZERS]
    return [
        [word]
        + [
            f"{count(composed(*overrides, word, f'memory={preset}')) / GIB:.1f}"
            for preset in memory_presets()
        ]
        for word, count in rows
    ]


def main(words: Sequence[str] | None = None) -> None:
    quiet_libraries()
    words = sys.argv[1:] if words is None else words
    rows = table(["surrogate_model=sd21", "precision=mixed", *words])
    headers = ["GiB, counted", *memory_presets()]
    print(tabulate(rows, headers, "github", disable_numparse=True))


if __name__ == "__main__":
    main()
