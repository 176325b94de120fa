"""The captioned portraits that the embedded model is trained on, rendered once.

The first identities are seen often and have a name in their captions, as celebrities have in those
of a large model: from them the model learns that one word can stand for one person, which is what
customization relies on.
"""

from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from anticustom.portraits import (
    SCENES,
    STYLES,
    TRAINING_IDENTITIES_FROM,
    caption,
    person,
    render,
    shot,
)
from experiments.embedded.architecture import SIZE

CAPTIONS = 6  # drawn for each portrait
NAMED, SHOTS_OF_NAMED, SHOTS = 600, 10, 2  # identities with a name; portraits of each identity
NAMED_PORTRAITS = NAMED * SHOTS_OF_NAMED
PER_FILE = 1000


@dataclass(frozen=True)
class TrainingPortraits:
    images: Tensor  # uint8 (n, 3, SIZE, SIZE)
    captions: list[list[str]]  # CAPTIONS of each


@cache
def names() -> list[str]:
    """Return one made-up word for each named identity."""
    syllables = [a + b for a, b in product("bdfgklmnprtvz", "aeiou")]
    words = [a + b for a, b in product(syllables, syllables) if a != b]
    return [str(word) for word in np.random.default_rng(0).permutation(words)[:NAMED]]


def training_portraits(work: Path, count: int) -> TrainingPortraits:
    """Return the first `count` portraits, rendered once, 1,000 a file under `work`."""
    folder = work / "portraits"
    folder.mkdir(parents=True, exist_ok=True)
    images = []
    for first in tqdm(range(0, count, PER_FILE), desc="training portraits"):
        file = folder / f"{first:06}.npz"
        if not file.exists():
            _render_file(file, first, min(first + PER_FILE, count))
        images.append(torch.from_numpy(np.load(file)["images"]))
    return TrainingPortraits(torch.cat(images)[:count], [_captions(k) for k in range(count)])


def _render_file(file: Path, first: int, end: int) -> None:
    chunks = torch.arange(first, end).split(50)
    rendered = [render(*zip(*map(_drawn, chunk.tolist()), strict=True), SIZE) for chunk in chunks]
    images = torch.cat([(images * 255).round().byte() for images in rendered])
    partial = file.with_suffix(".partial.npz")
    np.savez(partial, images=images.numpy())
    partial.rename(file)


def _identity_and_shot(k: int) -> tuple[int, int]:
    if k < NAMED_PORTRAITS:
        return divmod(k, SHOTS_OF_NAMED)
    identity, number = divmod(k - NAMED_PORTRAITS, SHOTS)
    return NAMED + identity, number


def _drawn(k: int):
    """Return person and shot of training portrait `k`."""
    rng = np.random.default_rng((k, 0x7417))
    identity, number = _identity_and_shot(k)
    # a third of the portraits show the scenes and styles that everyday shots do not draw
    style = str(rng.choice(STYLES, p=(0.55, 0.2, 0.1, 0.15)))
    scene = str(rng.choice(SCENES)) if rng.random() < 0.35 else None
    identity += TRAINING_IDENTITIES_FROM
    return person(identity), shot(identity, number, style=style, scene=scene)


def _captions(k: int) -> list[str]:
    """Return captions of training portrait `k`; of a named identity, all but two with the name."""
    identity, _ = _identity_and_shot(k)
    rng = np.random.default_rng((k, 0xCA97))
    named = [names()[identity]] * (CAPTIONS - 2) if identity < NAMED else []
    subjects = named + [""] * (CAPTIONS - len(named))
    who, when = _drawn(k)
    return [caption(who, when, rng, name) for name in subjects]
