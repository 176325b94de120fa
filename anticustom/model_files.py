"""Files of latent diffusion models in the diffusers layout: embedded, or in a folder."""

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


def part_folder(folder: Path, part: str) -> Path:
    """Return the folder of one part, such as "vae", of the model in a diffusers folder.

    The embedded `tiny_b` has the autoencoder of `tiny`, which is stored once.
    """
    if part == "vae" and folder.resolve() == (EMBEDDED / "tiny_b").resolve():
        folder = EMBEDDED / "tiny"
    return folder / part


def image_size(folder: Path) -> int:
    """Return the side in pixels of the images that the model in a diffusers folder is made for."""
    unet, vae = (
        json.loads((part_folder(folder, part) / "config.json").read_text())
        for part in ("unet", "vae")
    )
    return unet["sample_size"] * 2 ** (len(vae["block_out_channels"]) - 1)


def decoder_layer_names(folder: Path) -> list[str]:
    """Return the names of the decoder's layers, as `losses.decoder_layers` does, of the model in a
    diffusers folder.
    """
    unet = json.loads((folder / "unet" / "config.json").read_text())
    levels, blocks = len(unet["up_block_types"]), unet.get("layers_per_block", 2)
    counts = blocks[::-1] if isinstance(blocks, list) else [blocks] * levels
    return [f"{level}.{k}" for level, count in enumerate(counts) for k in range(count + 1)]


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
            vae=AutoencoderKL.from_config(AutoencoderKL.load_config(part_folder(folder, "vae"))),
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
    device: torch.device | str = "cpu",
    precision: Precision = "float32",
    gradient_checkpointing: bool = False,
) -> LatentDiffusion:
    """Return the model in the diffusers folder `path`, or the embedded one of that name.

    `precision` is float32, mixed (bfloat16 compute, float32 weights) or bfloat16 (weights too).
    With `gradient_checkpointing`, UNet and VAE keep few activations and compute the others again.
    """
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    folder = local_folder(path)
    if folder is None:
        raise ValueError(f"{path}: no folder of a model, nor an embedded model")
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32

    def network(kind, part: str, dtype_name: str):
        weights = {"use_safetensors": True, "local_files_only": True, dtype_name: dtype}
        return kind.from_pretrained(part_folder(folder, part), **weights).to(device)

    model = LatentDiffusion(
        vae=network(AutoencoderKL, "vae", "torch_dtype"),
        unet=network(UNet2DConditionModel, "unet", "torch_dtype"),
        text_encoder=network(CLIPTextModel, "text_encoder", "dtype"),
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        scheduler=DDPMScheduler.from_pretrained(folder / "scheduler"),
        mixed=precision == "mixed",
    )
    if gradient_checkpointing:
        model.checkpoint_gradients()
    return model
