"""All tests have one thread, no network, and the folder of shared reference data."""

import os
from pathlib import Path

import pytest

os.environ.pop("HYDRA_FULL_ERROR", None)  # with it refusals are tracebacks
os.environ.update(HF_HUB_OFFLINE="1", WANDB_MODE="offline", OMP_NUM_THREADS="1")


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared() -> Path:
    if "ANTICUSTOM_SHARED" not in os.environ:
        pytest.skip("ANTICUSTOM_SHARED does not name the folder of reference data")
    return Path(os.environ["ANTICUSTOM_SHARED"]).resolve()


@pytest.fixture(scope="session")
def random_sd(tmp_path_factory) -> Path:
    """Return the folder of a minuscule Stable Diffusion with random weights, for 64 px."""
    import torch
    from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from experiments.embedded.architecture import MAX_LENGTH, make_tokenizer, new_scheduler

    tokenizer = make_tokenizer([])
    small = {"block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "norm_num_groups": 4}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            latent_channels=4,
            sample_size=64,
            **small,
        )
        # Random pictures are nearly grey: only with contrast does a victim's small step show in its
        # 8-bit gallery on every machine.
        with torch.no_grad():
            vae.decoder.conv_out.weight.mul_(30)
        unet = UNet2DConditionModel(
            sample_size=8, cross_attention_dim=16, attention_head_dim=4, **small
        )
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                max_position_embeddings=MAX_LENGTH,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
    pipeline = StableDiffusionPipeline(
        vae=vae,
        unet=unet,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        scheduler=new_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    folder = tmp_path_factory.mktemp("random_sd")
    pipeline.save_pretrained(folder)
    return folder
