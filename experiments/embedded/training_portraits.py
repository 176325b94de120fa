"""The captioned portraits that the embedded models are trained on, rendered once.

The first identities are seen often, and captions call them by a name, like celebrities in the
captions of a large model. From them the model learns that one word can stand for one person.
Customization relies on that.
"""

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
    Person,
    Shot,
    caption,
    person,
    render,
    shot,
)
from experiments.embedded.architecture import SIZE
from experiments.embedded.training_run import save_whole

CAPTIONS = 6  # of each portrait
NAMED, SHOTS_OF_NAMED, SHOTS = 600, 10, 2  # identities with a name; portraits of each identity
NAMED_PORTRAITS = NAMED * SHOTS_OF_NAMED
PER_FILE = 1000


@cache
def names() -> list[str]:
    """Return one made-up word for each named identity."""
    syllables = [a + b for a, b in product("bdfgklmnprtvz", "aeiou")]
    words = [a + b for a, b in product(syllables, syllables) if a != b]
    return [str(word) for word in np.random.default_rng(0).permutation(words)[:NAMED]]


def training_portraits(work: Path, count: int) -> tuple[Tensor, list[list[str]]]:
    """Return the first `count` portraits, uint8 (count, 3, SIZE, SIZE), and CAPTIONS of each.

    Portraits that `work` lacks are rendered and kept there.
    """
    folder, images = work / "portraits", []
    folder.mkdir(parents=True, exist_ok=True)
    for first in tqdm(range(0, count, PER_FILE), desc="training portraits"):
        end = min(first + PER_FILE, count)
        file = folder / f"{first:06}-{end:06}.pt"
        if not file.exists():
            save_whole(_rendered(range(first, end)), file)
        images.append(torch.load(file, weights_only=True))
    return torch.cat(images), [_captions(k) for k in range(count)]


def _rendered(numbers: range) -> Tensor:
    chunks = [numbers[k : k + 50] for k in range(0, len(numbers), 50)]
    images = (render(*zip(*map(_drawn, chunk), strict=True), SIZE) for chunk in chunks)
    return torch.cat([(chunk * 255).round().byte() for chunk in images])


def _identity_and_shot(k: int) -> tuple[int, int]:
    if k < NAMED_PORTRAITS:
        return divmod(k, SHOTS_OF_NAMED)
    identity, number = divmod(k - NAMED_PORTRAITS, SHOTS)
    return NAMED + identity, number


def _drawn(k: int) -> tuple[Person, Shot]:
    """Return person and shot of training portrait `k`."""
    rng = np.random.default_rng((k, 0x7417))
    identity, number = _identity_and_shot(k)
    # a third of the portraits show the scenes and styles that everyday shots do not draw
    style = str(rng.choice(STYLES, p=(0.55, 0.2, 0.1, 0.15)))
    scene = str(rng.choice(SCENES)) if rng.random() < 0.35 else None
    identity += TRAINING_IDENTITIES_FROM
    return person(identity), shot(identity, number, style=style, scene=scene)


def _captions(k: int) -> list[str]:
    """Return captions of training portrait `k`; for a named identity all but two have the name."""
    identity, _ = _identity_and_shot(k)
    rng = np.random.default_rng((k, 0xCA97))
    named = [names()[identity]] * (CAPTIONS - 2) if identity < NAMED else []
    who, when = _drawn(k)
    return [caption(who, when, rng, name) for name in named + [""] * (CAPTIONS - len(named))]
