"""Stable Diffusion's networks with random weights: their shapes suffice to measure time and memory
without a download.
"""

from typing import Any

import torch

from anticustom.diffusion import LatentDiffusion, Precision
from anticustom.model_files import EMBEDDED

VAE = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "sample_size": 512}
NARROW = {"block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "norm_num_groups": 4}
# Stable Diffusion 1.x and 2.1 (base), of 512 px, and a shape of 64 px that a CPU computes at once
SHAPES: dict[str, dict[str, dict[str, Any]]] = {
    "sd15": {
        "vae": VAE,
        "unet": {"sample_size": 64, "attention_head_dim": 8, "cross_attention_dim": 768},
        "text_encoder": {
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_attention_heads": 12,
            "num_hidden_layers": 12,
        },
    },
    "sd21": {
        "vae": VAE,
        "unet": {
            "sample_size": 64,
            "attention_head_dim": (5, 10, 20, 20),
            "cross_attention_dim": 1024,
            "use_linear_projection": True,
        },
        "text_encoder": {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_attention_heads": 16,
            "num_hidden_layers": 23,
            "hidden_act": "gelu",
        },
    },
    "small": {
        "vae": NARROW | {"sample_size": 64},
        "unet": NARROW | {"sample_size": 8, "attention_head_dim": 4, "cross_attention_dim": 16},
        "text_encoder": {
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_attention_heads": 2,
            "num_hidden_layers": 2,
        },
    },
}


def random_model(name: str, device: str, precision: Precision) -> LatentDiffusion:
    """Return a model of the shape `name`, one of SHAPES, with random weights.

    The tokenizer is the embedded model's, padded to as many tokens as Stable Diffusion's.
    """
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    if name not in SHAPES:
        raise ValueError(f"model={name}: expected one of {', '.join(SHAPES)}")
    shape = SHAPES[name]
    default = torch.get_default_dtype()
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(0)
        torch.set_default_dtype(torch.bfloat16 if precision == "bfloat16" else torch.float32)
        networks = {
            "vae": AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                latent_channels=4,
                **shape["vae"],
            ),
            "unet": UNet2DConditionModel(**shape["unet"]),
            "text_encoder": CLIPTextModel(
                CLIPTextConfig(vocab_size=49408, **shape["text_encoder"])
            ),
        }
        torch.set_default_dtype(default)
    tokenizer = CLIPTokenizer.from_pretrained(
        str(EMBEDDED / "tiny"), subfolder="tokenizer", model_max_length=77
    )
    scheduler = DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        steps_offset=1,
    )
    return LatentDiffusion(
        **networks, tokenizer=tokenizer, scheduler=scheduler, mixed=precision == "mixed"
    )
