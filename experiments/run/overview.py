"""The picture of one experiment: photos, protected photos, and what the adversary gets."""

import functools
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from experiments.store.disk import atomic_write

if TYPE_CHECKING:
    from torch import Tensor

    Picture = Path | Tensor

INK, FAINT, RULE, PAPER = "#16191d", "#667080", "#d8dce2", "#ffffff"
MARGIN, LABEL, GAP, GROUP_GAP, ROW_GAP = 32, 196, 4, 16, 8  # pixels
PHOTOS, GALLERY = 8, 10  # most tiles in a row


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

    `photos` and `protected` go in pairs; `trained_on` is what the adversary made of the latter.
    The pictures of each gallery are in the order of `prompts`, the same number for each prompt;
    one or two of them are shown, with the same index above one another. Equal arguments give equal
    bytes.
    """
    clean = [_pixels(picture) for picture in photos.pictures[:PHOTOS]]
    noisy = [_pixels(picture) for picture in protected.pictures[:PHOTOS]]
    differences = [difference(one, other) for one, other in zip(clean, noisy, strict=True)]
    shown, each = _shown(galleries, prompts)
    drawn = [[_pixels(row.pictures[index]) for index in shown] for row in galleries]
    upper, lower = _Grid.of([clean, noisy], len(clean)), _Grid.of(drawn, each)

    page = _Page(max(upper.width, lower.width), 4 * upper.tile + len(drawn) * lower.tile)
    page.heading(title, subtitle)
    page.row(photos.label, photos.detail, clean, upper)
    page.row(protected.label, protected.detail, noisy, upper)
    page.row("Difference, tenfold", "grey: unchanged", differences, upper, Image.Resampling.NEAREST)
    if trained_on:
        taken = [_pixels(picture) for picture in trained_on.pictures[:PHOTOS]]
        page.row(trained_on.label, trained_on.detail, taken, upper)
    page.captions(prompts[: len(shown) // each], lower)
    for row, images in zip(galleries, drawn, strict=True):
        page.row(row.label, row.detail, images, lower)
    return atomic_write(path, page.png())


def difference(clean: np.ndarray, protected: np.ndarray) -> np.ndarray:
    """Ten times what was added, about middle grey: uint8 (h, w, 3) from two of that kind."""
    change = protected.astype(np.int16) - clean.astype(np.int16)
    return np.clip(128 + 10 * change, 0, 255).astype(np.uint8)


def _pixels(picture: "Picture") -> np.ndarray:
    if isinstance(picture, Path):
        with Image.open(picture) as image:
            return np.asarray(image.convert("RGB"))
    array = picture.detach().float().cpu().numpy().transpose(1, 2, 0)
    return np.round(np.clip(array, 0, 1) * 255).astype(np.uint8)


def _shown(galleries: Sequence[Row], prompts: Sequence[str]) -> tuple[list[int], int]:
    """Indices of the gallery pictures to draw, and how many of them each prompt has."""
    sizes = {len(row.pictures) for row in galleries}
    if len(sizes) != 1 or min(sizes) % len(prompts) or not min(sizes):
        raise ValueError(f"galleries of {sorted(sizes)} pictures for {len(prompts)} prompts")
    per_prompt = min(sizes) // len(prompts)
    each = min(per_prompt, 2 if 2 * len(prompts) <= GALLERY else 1)
    return [p * per_prompt + i for p in range(len(prompts)) for i in range(each)][:GALLERY], each


@dataclass(frozen=True)
class _Grid:
    """Columns of tiles, in groups of `each`; sizes in pixels."""

    columns: int
    tile: int
    each: int

    @classmethod
    def of(cls, rows: Sequence[Sequence[np.ndarray]], each: int) -> "_Grid":
        """Near 192 pixels, or 128 for many columns; small pictures are enlarged in whole steps."""
        columns = len(rows[0])
        target = 192 if columns <= 6 else 128
        smallest = min(image.shape[0] for row in rows for image in row)
        step = max(1, round(target / smallest))
        return cls(columns, smallest * step if smallest < target else target, each)

    @property
    def width(self) -> int:
        return self.left(self.columns - 1) + self.tile

    def left(self, column: int) -> int:
        gaps = column * GAP + (column // self.each) * (GROUP_GAP - GAP)
        return MARGIN + LABEL + column * self.tile + gaps


class _Page:
    """A page that is filled from the top: labels on the left, tiles beside them."""

    def __init__(self, width: int, height_of_tiles: int) -> None:
        self.image = Image.new("RGB", (width + MARGIN, height_of_tiles + 800), PAPER)
        self.draw = ImageDraw.Draw(self.image)
        self.y = MARGIN

    def heading(self, title: str, subtitle: str) -> None:
        width = self.image.width - 2 * MARGIN
        self._text(MARGIN, title, 22, width, bold=True)
        self.y += 4
        self._text(MARGIN, subtitle, 14, width, FAINT)
        self.y += 16

    def captions(self, prompts: Sequence[str], grid: _Grid) -> None:
        """A line, and the prompts above the groups of tiles that follow."""
        self.y += 10
        self.draw.line((MARGIN, self.y, self.image.width - MARGIN, self.y), RULE)
        self.y = top = self.y + 14
        width = grid.each * (grid.tile + GAP)
        ends = []
        for group, prompt in enumerate(prompts):
            self.y = top
            self._text(grid.left(group * grid.each), prompt, 13, width)
            ends.append(self.y)
        self.y = max(ends) + 6

    def row(
        self,
        label: str,
        detail: str,
        images: Sequence[np.ndarray],
        grid: _Grid,
        kernel: Image.Resampling = Image.Resampling.LANCZOS,
    ) -> None:
        top = self.y
        for column, image in enumerate(images):
            tile = Image.fromarray(image).resize((grid.tile, grid.tile), kernel)
            self.image.paste(tile, (grid.left(column), top))
        self.y = top + 2
        self._text(MARGIN, label, 15, LABEL - 16, bold=True)
        self.y += 4
        self._text(MARGIN, detail, 13, LABEL - 16, FAINT)
        self.y = max(self.y, top + grid.tile) + ROW_GAP

    def png(self) -> bytes:
        file = io.BytesIO()
        bottom = self.y - ROW_GAP + MARGIN
        self.image.crop((0, 0, self.image.width, bottom)).save(file, "PNG")
        return file.getvalue()

    def _text(
        self, x: int, text: str, size: int, width: int, colour: str = INK, bold: bool = False
    ) -> None:
        font = _font(size, bold)
        for line in _lines(text, font, width):
            self.draw.text((x, self.y), line, colour, font)
            self.y += round(1.3 * size)


@functools.cache
def _font(size: int, bold: bool) -> ImageFont.FreeTypeFont:
    import matplotlib  # for its fonts, which are the same on every machine

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    path = Path(matplotlib.get_data_path(), "fonts", "ttf", name)
    return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)


def _lines(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """The text's own lines, broken between words where they are wider than `width` pixels."""
    lines = []
    for paragraph in text.splitlines():
        line = ""
        for word in paragraph.split(" "):
            longer = f"{line} {word}" if line else word
            if line and font.getlength(longer) > width:
                lines.append(line)
                longer = word
            line = longer
        lines.append(line)
    return lines
