"""The rare word that stands for the person, such as `sks`, and the training of its embeddings."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from anticustom.diffusion import LatentDiffusion

FILE = "learned_embeds.safetensors"


def rare_word(instance_prompt: str, class_prompt: str) -> str:
    """Return the word that the instance prompt has and the class prompt lacks; of several the one
    before the class noun, with which the class prompt ends.

    Raises ValueError unless there is exactly one.
    """
    words, known = instance_prompt.split(), class_prompt.split()
    rare = {word for word in words if word not in known}
    if len(rare) > 1:
        rare &= {word for word, following in pairwise(words) if following == known[-1]}
    if len(rare) != 1:
        raise ValueError(
            f"customizer.instance_prompt={instance_prompt!r}: expected a word that the class "
            f"prompt {class_prompt!r} lacks before its noun, such as sks"
        )
    return rare.pop()


def embeddings(model: LatentDiffusion, word: str) -> Tensor:
    """Return a copy of the rows of the embedding table for the tokens of `word`, (n, width)."""
    return _table(model).weight[_tokens(model, word)].detach().clone()


@contextmanager
def trained_embeddings(model: LatentDiffusion, word: str, start: Tensor) -> Iterator[nn.Parameter]:
    """Give a parameter (n, width) that stands in for the rows of `word`, and is written into the
    embedding table at the end. It begins as `start`; all other rows stay as they are.
    """
    rows = nn.Parameter(start.clone(), requires_grad=False)
    tokens = _tokens(model, word)

    def stand_in(table: nn.Module, arguments: tuple[Tensor], output: Tensor) -> Tensor:
        for row, token in zip(rows, tokens, strict=True):
            output = torch.where((arguments[0] == token).unsqueeze(-1), row, output)
        return output

    hook = _table(model).register_forward_hook(stand_in)
    try:
        yield rows
    finally:
        hook.remove()
    _write(model, word, rows)


def save_embeddings(model: LatentDiffusion, word: str, folder: Path) -> None:
    """Write the rows of `word` as diffusers' `load_textual_inversion` reads them."""
    save_file({word: embeddings(model, word)}, folder / FILE, metadata={"format": "pt"})


def load_embeddings(model: LatentDiffusion, word: str, folder: Path) -> None:
    """Give `word` the rows saved in `folder`."""
    _write(model, word, load_file(folder / FILE)[word])


def _table(model: LatentDiffusion) -> nn.Embedding:
    return model.text_encoder.get_input_embeddings()


def _tokens(model: LatentDiffusion, word: str) -> list[int]:
    return model.tokenizer(word, add_special_tokens=False).input_ids


@torch.no_grad()
def _write(model: LatentDiffusion, word: str, rows: Tensor) -> None:
    table = _table(model).weight
    table[_tokens(model, word)] = rows.to(table)
