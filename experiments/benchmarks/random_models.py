"""Stable Diffusion's networks with random weights: their shapes suffice to measure time and memory
without a download.
"""

import torch

from anticustom.diffusion import LatentDiffusion, Precision
from anticustom.model_files import EMBEDDED

# what Stable Diffusion 1.x and 2.1 (base) do not share
UNETS = {
    "sd15": {"attention_head_dim": 8, "cross_attention_dim": 768},
    "sd21": {
        "attention_head_dim": (5, 10, 20, 20),
        "cross_attention_dim": 1024,
        "use_linear_projection": True,
    },
}
TEXT_ENCODERS = {
    "sd15": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
    },
    "sd21": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_attention_heads": 16,
        "num_hidden_layers": 23,
        "hidden_act": "gelu",
    },
}


def random_model(name: str, device: str, precision: Precision) -> LatentDiffusion:
    """Return Stable Diffusion `name` (sd15 or sd21, for 512 px) with random weights.

    Its tokenizer is the embedded model's, padded to as many tokens.
    """
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    if name not in UNETS:
        raise ValueError(f"model={name}: expected one of {', '.join(UNETS)}")
    widths = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2}
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    default = torch.get_default_dtype()
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(0)
        torch.set_default_dtype(dtype)
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            latent_channels=4,
            sample_size=512,
            **widths,
        )
        unet = UNet2DConditionModel(sample_size=64, **UNETS[name])
        text = CLIPTextModel(CLIPTextConfig(vocab_size=49408, **TEXT_ENCODERS[name]))
        torch.set_default_dtype(default)
    tokenizer = CLIPTokenizer.from_pretrained(
        str(EMBEDDED / "tiny"), subfolder="tokenizer", model_max_length=77
    )
    scheduler = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False
    )
    networks = {"vae": vae, "unet": unet, "text_encoder": text}
    return LatentDiffusion(
        **networks,
        tokenizer=tokenizer,
        scheduler=scheduler,
        mixed=precision == "mixed",
    )
