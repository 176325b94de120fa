"""LoRA: low-rank updates of layers of the UNet and of the text encoder's attention (arXiv
2106.09685).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from safetensors.torch import save_file

from anticustom.adapters import (
    ATTENTION,
    Adapters,
    Initialization,
    add_adapters,
    check_initialization,
)
from anticustom.checks import check_count
from anticustom.customizers.training import CustomizerInputs, train
from anticustom.diffusion import LatentDiffusion
from anticustom.finetuning import FineTuning

FILE = "pytorch_lora_weights.safetensors"
KOHYA_FILE = "kohya_lora_weights.safetensors"
# what makes diffusers' conversion give Kohya's names: lora_unet_..., lora_te_text_model_...
KOHYA_PREFIXES = {"unet": "unet", "text_encoder": "lora_te.text_model"}


@dataclass(frozen=True, kw_only=True)
class LoRA:
    """Adapters of rank `rank`, with the scaling alpha / rank fixed at 1: some programs that load
    them assume it. `unet_layers` and `initialization` are those of Adapters.
    """

    training: FineTuning
    steps: int
    rank: int
    unet_layers: Sequence[str] = ATTENTION
    initialization: Initialization = "kaiming_uniform"
    instance_prompt: str
    class_prompt: str
    seed: int = 0

    NEUTRAL: ClassVar[dict] = {"initialization": "kaiming_uniform"}

    def __post_init__(self):
        check_count("customizer.steps", self.steps)
        check_count("customizer.rank", self.rank)
        check_initialization("customizer", self.initialization)

    def customize(self, inputs: CustomizerInputs) -> list[float]:
        """Turn `inputs.model` into the victim; return the losses."""
        adapters = Adapters(
            rank=self.rank, unet_layers=self.unet_layers, initialization=self.initialization
        )
        return train(
            inputs,
            add_adapters(inputs.model, adapters, self.seed),
            self.training,
            self.steps,
            instance_prompt=self.instance_prompt,
            class_prompt=self.class_prompt,
        )

    def save(self, model: LatentDiffusion, folder: Path) -> None:
        """Write the adapters as diffusers' `load_lora_weights` reads them, their scaling
        included, and in Kohya's form for other programs.
        """
        from diffusers import StableDiffusionPipeline
        from diffusers.utils import convert_state_dict_to_kohya
        from peft.utils import get_peft_model_state_dict

        states, metadata, kohya = {}, {}, {}
        for part in ("unet", "text_encoder"):
            network = getattr(model, part)
            adapters = get_peft_model_state_dict(network, save_embedding_layers=False)
            states[part] = adapters
            metadata[part] = network.peft_config["default"].to_dict()
            kohya |= {f"{KOHYA_PREFIXES[part]}.{name}": w for name, w in adapters.items()}
        StableDiffusionPipeline.save_lora_weights(
            folder,
            unet_lora_layers=states["unet"],
            text_encoder_lora_layers=states["text_encoder"],
            unet_lora_adapter_metadata=metadata["unet"],
            text_encoder_lora_adapter_metadata=metadata["text_encoder"],
            weight_name=FILE,
        )
        # its alpha is the rank, as ours is
        kohya = {name: w.contiguous() for name, w in convert_state_dict_to_kohya(kohya).items()}
        save_file(kohya, folder / KOHYA_FILE, metadata={"format": "pt"})

    def load(self, model: LatentDiffusion, folder: Path) -> None:
        """Turn the base model into the victim saved in `folder`."""
        pipeline = model.pipeline()
        pipeline.load_lora_weights(folder, weight_name=FILE)
