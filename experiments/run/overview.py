"""The picture of one experiment: photos, protected photos, and the images of both victims."""

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure, SubFigure
from PIL import Image

from experiments.store.disk import atomic_write

if TYPE_CHECKING:
    from torch import Tensor

    Picture = Path | Tensor

PHOTOS, GALLERY = 8, 10  # most pictures in a row
LABEL, TILE, SMALL_TILE, WIDE = 2.0, 1.92, 1.28, 6  # inches; rows of more than WIDE are small
MARGIN = 0.1  # inches
INCH = 100  # pixels


@dataclass(frozen=True)
class Row:
    """Square pictures: PNG files or float tensors (3, h, w) in [0, 1], beside a label.

    `detail` is smaller text beneath the label, such as scores; it may have several lines.
    """

    label: str
    pictures: "Sequence[Picture]"
    detail: str = ""


def draw_overview(
    path: Path,
    *,
    title: str,
    subtitle: str = "",
    photos: Row,
    protected: Row,
    galleries: Sequence[Row],
    prompts: Sequence[str],
    trained_on: Row | None = None,
) -> Path:
    """Write one PNG: photos, protected photos, their difference, and the galleries below.

    `photos` and `protected` are pairs. `trained_on` are the photos that the adversary trained on.
    The pictures of each gallery are in the order of `prompts`, the same number for each prompt. One
    or two of each are shown, with the same index above one another. Equal arguments give equal
    bytes.
    """
    shown, each = _shown(galleries, prompts)
    clean, noisy = (list(map(_pixels, row.pictures[:PHOTOS])) for row in (photos, protected))
    differences = [difference(*pair) for pair in zip(clean, noisy, strict=True)]
    change = Row("Difference, tenfold", [], "grey: unchanged")
    rows = [(photos, clean), (protected, noisy), (change, differences)]
    if trained_on:
        rows.append((trained_on, list(map(_pixels, trained_on.pictures[:PHOTOS]))))
    upper = len(rows)
    rows += [(row, [_pixels(row.pictures[index]) for index in shown]) for row in galleries]

    columns = max(len(images) for _, images in rows)
    tile = TILE if columns <= WIDE else SMALL_TILE
    width = LABEL + columns * tile + MARGIN
    heading = textwrap.fill(title, round(width * 7.5))
    top = 0.65 + 0.3 * heading.count("\n")
    heights = [top, *[tile] * upper, 0.55, *[tile] * len(galleries), MARGIN]
    figure = Figure(figsize=(width, sum(heights)), dpi=INCH, facecolor="white")
    bands = figure.subfigures(len(heights), 1, height_ratios=heights)
    bands[0].text(MARGIN / width, 0.8, heading, va="top", size=15, weight="bold")
    bands[0].text(MARGIN / width, 0.12, subtitle, va="bottom", size=10, color="grey")
    captions = bands[1 + upper]
    for group, prompt in enumerate(prompts[: len(shown) // each]):
        text = textwrap.fill(prompt, round(each * tile * 11))
        captions.text((LABEL + group * each * tile) / width, 0.05, text, va="bottom", size=9)
    places = [*bands[1 : 1 + upper], *bands[2 + upper : -1]]
    for band, (row, images) in zip(places, rows, strict=True):
        _draw_row(band, row, images, columns, tile)
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return atomic_write(path, file.getvalue())


def _draw_row(
    band: SubFigure, row: Row, images: Sequence[np.ndarray], columns: int, tile: float
) -> None:
    right = 1 - MARGIN / band.figure.get_figwidth()
    edges = {"left": 0, "right": right, "top": 1, "bottom": 0.02, "wspace": 0.02}
    widths = [LABEL, *[tile] * columns]
    axes = band.subplots(1, columns + 1, width_ratios=widths, gridspec_kw=edges)
    for place in axes:
        place.axis("off")
    label = textwrap.fill(row.label, 22)
    details = "\n".join(textwrap.fill(line, 26) for line in row.detail.splitlines())
    axes[0].text(0.05, 0.95, label, va="top", size=11, weight="bold", clip_on=True)
    drop = 0.95 - 0.17 / tile * (2 + label.count("\n"))
    axes[0].text(0.05, drop, details, va="top", size=9, color="grey", clip_on=True)
    for place, image in zip(axes[1:], images, strict=False):
        place.imshow(image)


def difference(clean: np.ndarray, protected: np.ndarray) -> np.ndarray:
    """Return ten times the change about middle grey: uint8 (h, w, 3) from two of that kind."""
    change = protected.astype(np.int16) - clean.astype(np.int16)
    return np.clip(128 + 10 * change, 0, 255).astype(np.uint8)


def _pixels(picture: "Picture") -> np.ndarray:
    if isinstance(picture, Path):
        with Image.open(picture) as image:
            return np.asarray(image.convert("RGB"))
    array = picture.detach().float().cpu().numpy().transpose(1, 2, 0)
    return np.round(np.clip(array, 0, 1) * 255).astype(np.uint8)


def _shown(galleries: Sequence[Row], prompts: Sequence[str]) -> tuple[list[int], int]:
    """Return the indices of the gallery pictures to draw, and how many of them each prompt has."""
    sizes = {len(row.pictures) for row in galleries}
    if len(sizes) != 1 or min(sizes) % len(prompts) or not min(sizes):
        raise ValueError(f"galleries of {sorted(sizes)} pictures for {len(prompts)} prompts")
    per_prompt = min(sizes) // len(prompts)
    each = min(per_prompt, 2 if 2 * len(prompts) <= GALLERY else 1)
    return [p * per_prompt + i for p in range(len(prompts)) for i in range(each)][:GALLERY], each
