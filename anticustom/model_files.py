"""Files of latent diffusion models in the diffusers layout: embedded, in a folder, on the hub."""

import json
from pathlib import Path

import torch

from anticustom.diffusion import LatentDiffusion, Precision

EMBEDDED = Path(__file__).parent / "weights"


def local_folder(path: str) -> Path | None:
    """Return the folder that `path` names, itself or one of the embedded models; None for a
    repository of the hub.
    """
    for folder in (Path(path), EMBEDDED / path):
        if folder.is_dir():
            return folder
    return None


def image_size(folder: Path) -> int:
    """Return the side in pixels of the images that the model in a diffusers folder is made for."""
    unet, vae = (
        json.loads((folder / part / "config.json").read_text()) for part in ("unet", "vae")
    )
    return unet["sample_size"] * 2 ** (len(vae["block_out_channels"]) - 1)


def shapes(folder: Path, precision: Precision) -> LatentDiffusion:
    """Return the model that the JSON files of a diffusers folder describe, its weights random: for
    counting, under FakeTensorMode, where they take no memory.
    """
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from transformers import AutoConfig, CLIPTextModel, CLIPTokenizer

    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16 if precision == "bfloat16" else torch.float32)
    try:
        return LatentDiffusion(
            vae=AutoencoderKL.from_config(AutoencoderKL.load_config(folder / "vae")),
            unet=UNet2DConditionModel.from_config(
                UNet2DConditionModel.load_config(folder / "unet")
            ),
            text_encoder=CLIPTextModel(AutoConfig.from_pretrained(folder / "text_encoder")),
            tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
            scheduler=DDPMScheduler.from_pretrained(folder / "scheduler"),
            mixed=precision == "mixed",
        )
    finally:
        torch.set_default_dtype(default)


def load(
    path: str,
    *,
    revision: str | None = None,
    device: torch.device | str = "cpu",
    precision: Precision = "float32",
    gradient_checkpointing: bool = False,
) -> LatentDiffusion:
    """Return the model in the diffusers folder `path`, the embedded one of that name, or the hub's
    at `revision`.

    `precision` is float32, mixed (bfloat16 compute, float32 weights) or bfloat16 (weights too).
    With `gradient_checkpointing`, UNet and VAE keep few activations and compute the others again.
    """
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    folder = local_folder(path)
    source = {"revision": revision, "local_files_only": folder is not None}
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32

    def network(kind, part: str, dtype_name: str):
        weights = {"subfolder": part, "use_safetensors": True, dtype_name: dtype}
        return kind.from_pretrained(str(folder or path), **weights, **source).to(device)

    model = LatentDiffusion(
        vae=network(AutoencoderKL, "vae", "torch_dtype"),
        unet=network(UNet2DConditionModel, "unet", "torch_dtype"),
        text_encoder=network(CLIPTextModel, "text_encoder", "dtype"),
        tokenizer=CLIPTokenizer.from_pretrained(
            str(folder or path), subfolder="tokenizer", **source
        ),
        scheduler=DDPMScheduler.from_pretrained(
            str(folder or path), subfolder="scheduler", **source
        ),
        mixed=precision == "mixed",
    )
    if gradient_checkpointing:
        model.checkpoint_gradients()
    return model
