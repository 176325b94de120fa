"""The embedded models before their training: Stable Diffusion's parts, made small."""

import json

from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

SIZE = 128  # pixels
FACTOR = 8  # of the autoencoder, per side
RARE_TOKENS = (
    "sks",
    "zwx",
    "ukj",
    "xjy",
    "qzv",
)  # single tokens that no caption uses, for customization
PROMPT_WORDS = (
    "a an photo portrait picture dslr selfie close up of person man woman looking at the mirror in "
    "front eiffel tower riding bike on top mount fuji with and without wearing"
)
MAX_LENGTH = 32
WIDTHS = {"tiny": (48, 96, 128, 160), "tiny_b": (32, 64, 80, 96)}  # of the UNets' levels


def make_tokenizer(captions: list[list[str]]) -> CLIPTokenizer:
    """Return a tokenizer in which every word of the captions and prompts, and each rare token, is
    one token.
    """
    words = {
        word
        for texts in captions
        for text in texts
        for word in text.replace(",", " ").replace("-", " ").split()
    }
    words |= {*RARE_TOKENS, *PROMPT_WORDS.split(), *"abcdefghijklmnopqrstuvwxyz0123456789.,-'@!?"}
    start, end = "<|startoftext|>", "<|endoftext|>"
    bpe = Tokenizer(models.BPE(unk_token=end, end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=10_000,
        min_frequency=1,
        special_tokens=[start, end],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    bpe.train_from_iterator(sorted(words), trainer)
    learned = json.loads(bpe.to_str())["model"]
    merges = [tuple(pair) for pair in learned["merges"]]
    return CLIPTokenizer(vocab=learned["vocab"], merges=merges, model_max_length=MAX_LENGTH)


def new_autoencoder() -> AutoencoderKL:
    return AutoencoderKL(
        sample_size=SIZE,
        latent_channels=8,
        block_out_channels=(16, 32, 64, 64),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=8,
    )


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=tokenizer.model_max_length,
        projection_dim=128,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def new_unet(model: str) -> UNet2DConditionModel:
    """Return a UNet of four levels; attention at the finest would cost as much as all the rest."""
    return UNet2DConditionModel(
        sample_size=SIZE // FACTOR,
        in_channels=8,
        out_channels=8,
        layers_per_block=1,
        block_out_channels=WIDTHS[model],
        norm_num_groups=8,
        cross_attention_dim=128,
        attention_head_dim=4,
        down_block_types=(
            "DownBlock2D",
            "CrossAttnDownBlock2D",
            "CrossAttnDownBlock2D",
            "DownBlock2D",
        ),
        up_block_types=(
            "UpBlock2D",
            "CrossAttnUpBlock2D",
            "CrossAttnUpBlock2D",
            "UpBlock2D",
        ),
    )


def new_scheduler() -> DDPMScheduler:
    """Stable Diffusion's noise schedule."""
    return DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        steps_offset=1,
    )
