"""Customizers with short trainings, and samples that show whether two models are the same."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from helpers import PROMPTS

from anticustom.customizers.custom_diffusion import CustomDiffusion
from anticustom.customizers.dreambooth import DreamBooth
from anticustom.customizers.lora import LoRA
from anticustom.customizers.textual_inversion import TextualInversion
from anticustom.diffusion import LatentDiffusion
from anticustom.finetuning import FineTuning

PROMPT = PROMPTS["instance_prompt"]
TRAINING = FineTuning(learning_rate=0.02, batch_size=2)  # so high that two steps show
CUSTOMIZERS = {
    "dreambooth": DreamBooth(training=TRAINING, steps=3, **PROMPTS),
    "lora": LoRA(training=TRAINING, steps=3, rank=4, **PROMPTS),
    "textual_inversion": TextualInversion(
        training=FineTuning(learning_rate=0.5, batch_size=2, prior_weight=0),
        steps=3,
        initializer="person",
        **PROMPTS,
    ),
    "custom_diffusion": CustomDiffusion(training=TRAINING, steps=3, **PROMPTS),
}


class Victim(NamedTuple):
    """A customized model, the losses of its training, and the folder that it is saved in."""

    model: LatentDiffusion
    losses: list[float]
    folder: Path


def noise() -> torch.Tensor:
    return torch.randn((2, 4, 8, 8), generator=torch.Generator().manual_seed(0))


def samples(model) -> torch.Tensor:
    with float64(model.unet, model.vae, model.text_encoder):
        return model.sample(PROMPT, noise(), steps=2, guidance_scale=3.0, scheduler="DDIMScheduler")


def pipeline_samples(pipeline) -> torch.Tensor:
    with float64(pipeline.unet, pipeline.vae, pipeline.text_encoder):
        images = pipeline(
            [PROMPT] * 2,
            latents=noise().double(),
            num_inference_steps=2,
            guidance_scale=3.0,
            output_type="pt",
        ).images
    return images.float()


@contextmanager
def float64(*networks: torch.nn.Module) -> Iterator[None]:
    """Compute in float64 for a while: no processor's rounding then shows in images."""
    for network in networks:
        network.double()
    try:
        yield
    finally:
        for network in networks:
            network.float()
