"""LoRA adapters: low-rank updates of layers, instead of their weights (arXiv 2106.09685)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, get_args

from safetensors import safe_open
from torch import nn

from anticustom.checks import check_count
from anticustom.diffusion import LatentDiffusion
from anticustom.draws import keyed_generator

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")  # of the UNet
Initialization = Literal["kaiming_uniform", "gaussian"]
TEXT_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")


@dataclass(frozen=True, kw_only=True)
class Adapters:
    """Adapters of rank `rank`, of the layers of the UNet whose names end in one of `unet_layers`,
    and of the text encoder's attention.

    Their first matrix starts uniform within 1 / sqrt(inputs), as PEFT's does (`kaiming_uniform`),
    or `gaussian` of standard deviation 1 / rank, as in diffusers' scripts: at small ranks several
    times larger, and so are the first updates at equal learning rates. The second starts at 0.
    """

    rank: int
    unet_layers: Sequence[str] = ATTENTION
    initialization: Initialization = "kaiming_uniform"

    NEUTRAL: ClassVar[dict] = {"initialization": "kaiming_uniform"}

    def __post_init__(self):
        check_count("attack.surrogate_schedule.adapters.rank", self.rank)
        check_initialization("attack.surrogate_schedule.adapters", self.initialization)


def check_initialization(owner: str, initialization: str) -> None:
    if initialization not in get_args(Initialization):
        known = " or ".join(get_args(Initialization))
        raise ValueError(f"{owner}.initialization={initialization!r}: expected {known}")


def check_layers(key: str, unet_layers: Sequence[str], weights: Mapping[str, Sequence[int]]):
    """Raise ValueError unless each of `unet_layers`, which are the setting `key`, ends the name of
    a linear layer or convolution; `weights` are the names and shapes of the UNet's tensors.
    """
    layers = [
        f".{name.removesuffix('.weight')}"
        for name, shape in weights.items()
        if name.endswith(".weight") and len(shape) in (2, 4)
    ]
    if not unet_layers:
        raise ValueError(f"{key}=[]: expected names of layers, for example {', '.join(ATTENTION)}")
    for layer in unet_layers:
        if not any(name.endswith(f".{layer}") for name in layers):
            raise ValueError(f"{key}: the UNet has no linear layer or convolution {layer!r}")


def weights_in(folder: Path) -> dict[str, list[int]]:
    """Return names and shapes of the tensors in the UNet of a diffusers folder, from the header of
    its file.
    """
    with safe_open(folder / "unet" / "diffusion_pytorch_model.safetensors", "pt") as file:
        names = file.keys()
        return {name: file.get_slice(name).get_shape() for name in names}


def add_adapters(model: LatentDiffusion, adapters: Adapters, seed: int) -> list[nn.Parameter]:
    """Add untrained adapters to UNet and text encoder, the same ones for the same seed; return
    their parameters. Raises ValueError as `check_layers`.
    """
    from peft import LoraConfig  # takes seconds to import

    parameters = []
    weights = {name: tuple(weight.shape) for name, weight in model.unet.named_parameters()}
    check_layers("unet_layers", adapters.unet_layers, weights)
    rank = adapters.rank
    for part, targets in {"unet": adapters.unet_layers, "text_encoder": TEXT_ATTENTION}.items():
        network = getattr(model, part)
        network.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=list(targets)))
        for name, parameter in network.named_parameters():
            if "lora_" not in name:
                continue
            if "lora_A" in name:  # B starts at 0
                generator = keyed_generator(seed, "lora", part, name)
                drawn = parameter.new_empty(parameter.shape, device="cpu")
                if adapters.initialization == "gaussian":
                    drawn.normal_(0, 1 / rank, generator=generator)
                else:
                    bound = parameter[0].numel() ** -0.5
                    drawn.uniform_(-bound, bound, generator=generator)
                parameter.data.copy_(drawn)
            parameter.requires_grad_(False)
            parameters.append(parameter)
    return parameters
