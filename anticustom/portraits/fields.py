"""Tensors over a batch of pictures, and the few shapes that everything is painted with."""

from collections.abc import Callable, Sequence
from dataclasses import fields

import torch
from torch import Tensor
from torch.nn import functional

from anticustom.portraits.people import Person
from anticustom.portraits.shots import Shot

_NOISE = torch.rand(1, 1, 128, 128, generator=torch.Generator().manual_seed(7))


class Fields:
    """Named values of a batch: numbers are (n, 1, 1), colours (n, 3, 1, 1), planes (n, h, w)."""

    def __init__(self, **values):
        self.__dict__.update(values)

    def rows(self, rows: list[int]) -> "Fields":
        """Return the same fields of some of the pictures, each copied when it is first used."""
        return _Rows(self, rows)


class _Rows(Fields):
    def __init__(self, whole: Fields, rows: list[int]):
        super().__init__(_whole=whole, _rows=rows)

    def __getattr__(self, name: str):
        value = getattr(self._whole, name)
        if isinstance(value, list):
            value = [value[row] for row in self._rows]
        elif isinstance(value, Tensor):
            value = value[self._rows]
        setattr(self, name, value)
        return value


def batch_fields(people: Sequence[Person], shots: Sequence[Shot]) -> Fields:
    """Return the attributes of people and their shots, one row per picture."""
    values = {}
    for things in (people, shots):
        for field in fields(things[0]):
            column = [getattr(thing, field.name) for thing in things]
            if isinstance(column[0], tuple):
                values[field.name] = torch.tensor(column)[..., None, None]
            elif isinstance(column[0], str):
                values[field.name] = column
            else:
                values[field.name] = torch.tensor(column, dtype=torch.float32)[:, None, None]
    return Fields(**values)


def paint_where(
    image: Tensor, f: Fields, wanted: Callable[[int], bool], paint: Callable[[Tensor, Fields], None]
) -> None:
    """Apply `paint(image, fields)`, which works in place, to the wanted pictures of a batch."""
    rows = [row for row in range(len(image)) if wanted(row)]
    if rows:
        part = image[rows]
        paint(part, f.rows(rows))
        image[rows] = part


def over(image: Tensor, mask: Tensor, colour: Tensor) -> None:
    """Paint a colour (n, 3, 1 or h, 1 or w) over the image in place where the mask (n, h, w) is."""
    image.lerp_(colour.expand_as(image), mask[:, None])


def rgb(red: float, green: float, blue: float) -> Tensor:
    """Return a constant colour, (1, 3, 1, 1)."""
    return torch.tensor((red, green, blue))[None, :, None, None]


def within(distance: Tensor, edge: Tensor | float) -> Tensor:
    """Return the mask of where a signed distance is positive, with an edge of this width."""
    return (distance / edge + 0.5).clamp_(0, 1)


def ramp(low: Tensor | float, high: Tensor | float, value: Tensor) -> Tensor:
    """Rise smoothly from 0 at `low` to 1 at `high` (or fall, where `high` is the lower one)."""
    share = (value - low).div_(high - low).clamp_(0, 1)
    return share.square().mul_(share.mul_(-2).add_(3))


def blob(x: Tensor, y: Tensor, cx, cy, width, height) -> Tensor:
    """Return a hill of height 1, close to a Gaussian."""
    return _hill(((x - cx) / width).square_() + ((y - cy) / height).square_())


def ridge(distance: Tensor, width) -> Tensor:
    """Return the profile of a hill along a line at distance 0."""
    return _hill((distance / width).square_())


def noise(x: Tensor, y: Tensor, frequency: float, seed: Tensor) -> Tensor:
    """Return smooth noise in [0, 1], a function of the place and the seed."""
    places = torch.stack([x * frequency + seed * 0.37, y * frequency + seed * 0.73], -1) / 8
    values = _NOISE.expand(len(places), 1, *_NOISE.shape[2:])
    sampled = functional.grid_sample(values, places, padding_mode="reflection", align_corners=True)
    return sampled[:, 0]


def _hill(squared: Tensor) -> Tensor:
    # (1 - q/5)^4 instead of exp(-q): several times faster, and exactly 0 far away.
    return squared.mul_(-0.2).add_(1).clamp_(min=0).square_().square_()
