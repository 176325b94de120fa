"""Custom Diffusion: keys and values of the UNet's cross-attention and the embedding of the rare
word, with prior preservation (arXiv 2212.04488).
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from anticustom.checks import check_count
from anticustom.customizers.rare_word import (
    embeddings,
    load_embeddings,
    rare_word,
    save_embeddings,
    trained_embeddings,
)
from anticustom.customizers.training import CustomizerInputs, train
from anticustom.diffusion import LatentDiffusion
from anticustom.finetuning import FineTuning

FILE = "pytorch_custom_diffusion_weights.safetensors"


@dataclass(frozen=True, kw_only=True)
class CustomDiffusion:
    """The projections of the text to keys and values, and the embedding of the rare word of the
    instance prompt, which the class prompt lacks.

    The authors' code and diffusers' also hold back the gradient through the keys and values of the
    start token, which the paper does not mention and is not done here.
    """

    training: FineTuning
    steps: int
    instance_prompt: str
    class_prompt: str

    def __post_init__(self):
        check_count("customizer.steps", self.steps)
        rare_word(self.instance_prompt, self.class_prompt)

    @property
    def word(self) -> str:
        return rare_word(self.instance_prompt, self.class_prompt)

    def customize(self, inputs: CustomizerInputs) -> list[float]:
        """Turn `inputs.model` into the victim; return the losses."""
        model = inputs.model
        with trained_embeddings(model, self.word, embeddings(model, self.word)) as rows:
            return train(
                inputs,
                [*text_projections(model).values(), rows],
                self.training,
                self.steps,
                instance_prompt=self.instance_prompt,
                class_prompt=self.class_prompt,
            )

    def save(self, model: LatentDiffusion, folder: Path) -> None:
        """Write the projections as diffusers' `load_attn_procs` reads them, and the embedding as
        its `load_textual_inversion` does.
        """
        weights = {name: weight.detach() for name, weight in text_projections(model).items()}
        # it wants to be told of every attention, of those without weights of their own too
        names = model.unet.attn_processors
        weights |= {name: torch.zeros(0) for name in names if ".attn1." in name}
        save_file(weights, folder / FILE, metadata={"format": "pt"})
        save_embeddings(model, self.word, folder)

    @torch.no_grad()
    def load(self, model: LatentDiffusion, folder: Path) -> None:
        """Turn the base model into the victim saved in `folder`."""
        weights = load_file(folder / FILE)
        for name, weight in text_projections(model).items():
            weight.copy_(weights[name])
        load_embeddings(model, self.word, folder)


def text_projections(model: LatentDiffusion) -> dict[str, nn.Parameter]:
    """Return the weights that project the text to keys and values, by diffusers' names for them in
    files of Custom Diffusion.
    """
    return {
        f"{name}.processor.{projection}_custom_diffusion.weight": getattr(module, projection).weight
        for name, module in model.unet.named_modules()
        if name.endswith(".attn2")
        for projection in ("to_k", "to_v")
    }
