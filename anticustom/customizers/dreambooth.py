"""DreamBooth: all weights of the UNet and the text encoder, with prior preservation (arXiv
2208.12242).
"""

from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file, save_file

from anticustom.checks import check_count
from anticustom.customizers.training import CustomizerInputs, train
from anticustom.diffusion import LatentDiffusion
from anticustom.finetuning import FineTuning, all_weights

PARTS = ("unet", "text_encoder")


@dataclass(frozen=True, kw_only=True)
class DreamBooth:
    """The papers' victim: `steps` of fine-tuning of UNet and text encoder."""

    training: FineTuning
    steps: int
    instance_prompt: str
    class_prompt: str

    def __post_init__(self):
        check_count("customizer.steps", self.steps)

    def customize(self, inputs: CustomizerInputs) -> list[float]:
        """Turn `inputs.model` into the victim; return the losses."""
        return train(
            inputs,
            all_weights(inputs.model),
            self.training,
            self.steps,
            instance_prompt=self.instance_prompt,
            class_prompt=self.class_prompt,
        )

    def save(self, model: LatentDiffusion, folder: Path) -> None:
        """Write what the victim's UNet and text encoder have instead of the base model's
        weights.
        """
        for part in PARTS:
            weights = {k: v.contiguous() for k, v in getattr(model, part).state_dict().items()}
            save_file(weights, folder / f"{part}.safetensors", metadata={"format": "pt"})

    def load(self, model: LatentDiffusion, folder: Path) -> None:
        """Turn the base model into the victim saved in `folder`."""
        for part in PARTS:
            getattr(model, part).load_state_dict(load_file(folder / f"{part}.safetensors"))
