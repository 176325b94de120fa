"""The embedded models before their training: the parts of Stable Diffusion, made small."""

import json
from itertools import chain

from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

SIZE = 128  # pixels
FACTOR = 8  # of the autoencoder, per side
RARE_TOKENS = ("sks", "zwx", "ukj", "xjy", "qzv")  # for customization: no caption has them
PROMPT_WORDS = (
    "a an photo portrait picture dslr selfie close up of person man woman looking at the mirror in "
    "front eiffel tower riding bike on top mount fuji with and without wearing"
)
MAX_LENGTH = 32  # tokens
WIDTHS = {"tiny": (48, 96, 128, 160), "tiny_b": (32, 64, 80, 96)}  # of the levels of the UNets


def make_tokenizer(captions: list[list[str]]) -> CLIPTokenizer:
    """Return a tokenizer in which every word of the captions and prompts, and each rare token, is
    one token.

    Equal captions give equal numbers of the tokens.
    """
    text = " ".join(chain.from_iterable(captions)).replace(",", " ").replace("-", " ")
    words = {*text.split(), *PROMPT_WORDS.split(), *RARE_TOKENS}
    words |= {*"abcdefghijklmnopqrstuvwxyz0123456789.,-'@!?"}
    start, end, word_end = "<|startoftext|>", "<|endoftext|>", "</w>"
    # By itself the trainer would number the last letters of words in another order at every call.
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    alphabet += [letter + word_end for letter in sorted({word[-1] for word in words})]
    bpe = Tokenizer(models.BPE(unk_token=end, end_of_word_suffix=word_end))
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=10_000,
        min_frequency=1,
        special_tokens=[start, end, *alphabet],
        end_of_word_suffix=word_end,
        show_progress=False,
    )
    bpe.train_from_iterator(sorted(words), trainer)
    model = json.loads(bpe.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    return CLIPTokenizer(vocab=model["vocab"], merges=merges, model_max_length=MAX_LENGTH)


def new_autoencoder() -> AutoencoderKL:
    """Return an autoencoder of 8 latent channels with random weights."""
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
    """Return a text encoder of 3 layers for the tokens of `tokenizer` with random weights."""
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
    """Return a UNet of four levels, of the widths of `model`, with random weights.

    The finest level has no attention, which would cost as much as all the rest.
    """
    return UNet2DConditionModel(
        sample_size=SIZE // FACTOR,
        in_channels=8,
        out_channels=8,
        layers_per_block=1,
        block_out_channels=WIDTHS[model],
        norm_num_groups=8,
        cross_attention_dim=128,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", *("CrossAttnDownBlock2D",) * 2, "DownBlock2D"),
        up_block_types=("UpBlock2D", *("CrossAttnUpBlock2D",) * 2, "UpBlock2D"),
    )


def new_scheduler() -> DDPMScheduler:
    """Return Stable Diffusion's noise schedule."""
    return DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        steps_offset=1,
    )
