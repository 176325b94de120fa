"""The tokenizer of the embedded model: CLIP's, with a vocabulary of the words that captions and
prompts use.
"""

import json

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer

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
