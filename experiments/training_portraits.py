"""The captioned portraits that the embedded model is trained on, rendered once."""

import json
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
from experiments.tiny_model import SIZE

CAPTIONS = 4  # drawn for each portrait
SHOTS = 2  # of each training identity


def training_portraits(work: Path, count: int) -> tuple[Tensor, list[list[str]]]:
    """Return `count` portraits, uint8 (n, 3, 64, 64), and the captions of each; rendered once,
    1,000 a file.
    """
    folder = work / "portraits"
    folder.mkdir(parents=True, exist_ok=True)
    images, captions = [], []
    for first in tqdm(range(0, count, 1000), desc="training portraits"):
        file = folder / f"{first:06}.npz"
        if not file.exists():
            _render_file(file, first, min(first + 1000, count))
        content = np.load(file)
        images.append(torch.from_numpy(content["images"]))
        captions += json.loads(str(content["captions"]))
    return torch.cat(images), captions


def _render_file(file: Path, first: int, end: int) -> None:
    images, captions = [], []
    for start in range(first, end, 50):
        people, shots = [], []
        for k in range(start, min(start + 50, end)):
            rng = np.random.default_rng((k, 0x7417))
            number = TRAINING_IDENTITIES_FROM + k // SHOTS
            # a third of the portraits show the scenes and styles that everyday shots do not draw
            style = str(rng.choice(STYLES, p=(0.55, 0.2, 0.1, 0.15)))
            scene = str(rng.choice(SCENES)) if rng.random() < 0.35 else None
            people.append(person(number))
            shots.append(shot(number, k % SHOTS, style=style, scene=scene))
            captions.append([caption(people[-1], shots[-1], rng) for _ in range(CAPTIONS)])
        images.append((render(people, shots, SIZE) * 255).round().byte())
    partial = file.with_suffix(".partial.npz")
    np.savez(partial, images=torch.cat(images).numpy(), captions=json.dumps(captions))
    partial.rename(file)


# --- what both trainings share
# --------------------------------------------------------------------------------------
