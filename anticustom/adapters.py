"""LoRA adapters: low-rank updates of layers, instead of their weights (arXiv 2106.09685)."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from anticustom.diffusion import LatentDiffusion
from anticustom.draws import keyed_generator

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")  # of the UNet
TEXT_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")


@dataclass(frozen=True, kw_only=True)
class Adapters:
    """Which adapters a surrogate trains: of rank `rank`, of the layers of the UNet whose names end
    in one of `unet_layers`, and of the text encoder's attention.
    """

    rank: int
    unet_layers: Sequence[str] = ATTENTION


def add_adapters(
    model: LatentDiffusion, unet_layers: Sequence[str], rank: int, seed: int
) -> list[nn.Parameter]:
    """Add untrained adapters to UNet and text encoder, the same ones for the same seed; return
    their parameters. Raises ValueError for a name that no layer of the UNet ends with.
    """
    from peft import LoraConfig  # takes seconds to import

    parameters = []
    for layer in unet_layers:
        if not any(f".{name}".endswith(f".{layer}") for name, _ in model.unet.named_modules()):
            raise ValueError(f"unet_layers: the UNet has no layer {layer!r}")
    for part, targets in {"unet": unet_layers, "text_encoder": TEXT_ATTENTION}.items():
        network = getattr(model, part)
        network.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=list(targets)))
        for name, parameter in network.named_parameters():
            if "lora_" not in name:
                continue
            if "lora_A" in name:  # B starts at 0
                bound = parameter[0].numel() ** -0.5
                generator = keyed_generator(seed, "lora", part, name)
                drawn = parameter.new_empty(parameter.shape, device="cpu")
                parameter.data.copy_(drawn.uniform_(-bound, bound, generator=generator))
            parameter.requires_grad_(False)
            parameters.append(parameter)
    return parameters
