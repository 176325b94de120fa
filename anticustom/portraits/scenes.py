"""Backgrounds: what is seen around a person. Screen coordinates run from -1 to 1, y down."""

import torch
from torch import Tensor
from torch.nn import functional

from anticustom.portraits.fields import (
    Fields,
    blob,
    noise,
    over,
    paint_where,
    ramp,
    rgb,
    ridge,
    within,
)


def paint_scene(image: Tensor, f: Fields) -> None:
    """Fill the image (n, 3, h, w) in place with each shot's scene."""
    for scene, paint in _SCENES.items():
        paint_where(image, f, lambda row, scene=scene: f.scene[row] == scene, paint)
    paint_where(image, f, lambda row: f.style[row] == "dslr", _defocus)


def paint_foreground(image: Tensor, f: Fields) -> None:
    """Paint in place what stands between the camera and the person."""
    paint_where(image, f, lambda row: f.style[row] == "selfie", _arm)
    paint_where(image, f, lambda row: f.scene[row] == "bike", _handlebar)
    paint_where(image, f, lambda row: f.scene[row] == "mirror", _mirror_frame)


def _defocus(image: Tensor, f: Fields) -> None:
    size = image.shape[-1]
    small = functional.interpolate(image, (12, 12), mode="area")
    image.copy_(functional.interpolate(small, (size, size), mode="bicubic").clamp_(0, 1))


def _box(f: Fields, left, right, top, bottom) -> Tensor:
    across = torch.minimum(f.X - left, right - f.X)
    return within(torch.minimum(across, torch.minimum(f.Y - top, bottom - f.Y)), f.pixel)


def _gradient(image: Tensor, f: Fields, top: Tensor, bottom: Tensor) -> None:
    share = ((f.Y + 1) / 2)[:, None]
    image.copy_(top + (bottom - top) * share)


def _studio(image: Tensor, f: Fields) -> None:
    _gradient(image, f, f.backdrop, 0.75 * f.backdrop + 0.25 * f.backdrop_low)
    halo = blob(f.X, f.Y, f.layout[:, 0] - 0.5, -0.2, 0.9, 0.9)
    image.mul_((0.80 + 0.35 * halo)[:, None])


def _room(image: Tensor, f: Fields) -> None:
    wall = 0.55 * f.backdrop + 0.40
    _gradient(image, f, wall * 0.92, wall * 0.8)
    a, b, c, d = (f.layout[:, i] for i in range(4))
    side = torch.where(a > 0.5, 1.0, -1.0)
    # A window on one side, a shelf on the other.
    middle = side * (0.62 + 0.1 * b)
    over(image, _box(f, middle - 0.30, middle + 0.30, -0.85, -0.1), rgb(0.95, 0.94, 0.90))
    over(image, _box(f, middle - 0.25, middle + 0.25, -0.80, -0.15), rgb(0.68, 0.84, 0.97))
    over(image, _box(f, middle - 0.02, middle + 0.02, -0.80, -0.15), rgb(0.95, 0.94, 0.90))
    shelf = -0.35 + 0.3 * c
    left = -side * 0.72
    over(image, _box(f, left - 0.33, left + 0.33, shelf, shelf + 0.05), rgb(0.42, 0.27, 0.16))
    for k, hue in enumerate((rgb(0.65, 0.2, 0.18), rgb(0.2, 0.35, 0.55), rgb(0.75, 0.6, 0.3))):
        book = left - 0.22 + 0.17 * k
        over(image, _box(f, book, book + 0.13, shelf - 0.26 + 0.04 * k, shelf), hue)
    table = 0.62 + 0.2 * d
    over(image, _box(f, -2, 2, table, 2), f.backdrop_low * 0.6)


def _city(image: Tensor, f: Fields) -> None:
    _gradient(image, f, rgb(0.52, 0.68, 0.86), rgb(0.86, 0.88, 0.88))
    for k in range(5):
        centre = -1 + 0.5 * k + 0.3 * (f.layout[:, k] - 0.5)
        top = -0.75 + 0.8 * f.layout[:, 7 - k]
        tint = 0.30 + 0.35 * f.layout[:, (k + 2) % 8]
        wall = tint[:, None] * (0.75 * rgb(1, 0.95, 0.9) + 0.25 * f.backdrop)
        block = _box(f, centre - 0.24, centre + 0.24, top, 0.8)
        over(image, block, wall)
        windows = ((f.X - centre) * 40).sin() * ((f.Y - top) * 34).sin()
        lit = block * ramp(0.15, 0.4, windows)
        over(image, lit * 0.75, rgb(0.92, 0.86, 0.62) * (0.5 + f.layout[:, k, None] * 0.5))
    over(image, _box(f, -2, 2, 0.72, 2), rgb(0.35, 0.35, 0.37))


def _beach(image: Tensor, f: Fields) -> None:
    horizon = -0.15 + 0.35 * f.layout[:, 0]
    _gradient(image, f, rgb(0.40, 0.66, 0.93), rgb(0.92, 0.95, 0.98))
    waves = 0.03 * ((f.Y * 60) + 3 * (f.X * 5).sin()).sin()
    over(image, within(f.Y - horizon, f.pixel), rgb(0.10, 0.48, 0.66) + waves[:, None])
    shore = horizon + 0.32 + 0.05 * (f.X * 3 + 6 * f.layout[:, 1]).sin()
    over(image, within(f.Y - shore, f.pixel), rgb(0.97, 0.97, 0.95))
    over(image, within(f.Y - shore - 0.05, f.pixel), rgb(0.90, 0.79, 0.58))


def _forest(image: Tensor, f: Fields) -> None:
    _gradient(image, f, rgb(0.36, 0.55, 0.26), rgb(0.16, 0.30, 0.12))
    seed = 900 * f.layout[:, 0]
    leaves = noise(f.X, f.Y, 3.0, seed) + noise(f.X, f.Y, 9.0, seed) - 0.9
    image.add_(0.34 * leaves[:, None] * rgb(0.8, 1, 0.5)).clamp_(min=0)
    for k in range(5):
        centre = -0.95 + 0.47 * k + 0.25 * (f.layout[:, 2 + k] - 0.5)
        half = 0.05 + 0.05 * f.layout[:, (5 + k) % 8]
        trunk = within(half - (f.X - centre + 0.02 * (f.Y * 5 + k).sin()).abs(), f.pixel)
        shade = (0.75 - 2.5 * (f.X - centre))[:, None]
        over(image, trunk, rgb(0.33, 0.23, 0.15) * shade)


def _mirror(image: Tensor, f: Fields) -> None:
    # The room that the glass shows: pale and bluish.
    _room(image, f)
    image.mul_(0.72).add_(rgb(0.16, 0.22, 0.25))


def _eiffel_tower(image: Tensor, f: Fields) -> None:
    _gradient(image, f, rgb(0.45, 0.66, 0.92), rgb(0.90, 0.93, 0.96))
    over(image, within(f.Y - 0.62 - 0.04 * (f.X * 9).sin(), f.pixel), rgb(0.30, 0.45, 0.22))
    side = torch.where(f.layout[:, 0] > 0.5, 1.0, -1.0)
    x, y = f.X - side * 0.50, (f.Y + 0.95) / 1.65
    height = y.clamp(0, 1)
    half = 0.018 + 0.10 * height + 0.30 * height.pow(3.2)
    standing = within(torch.minimum(y, 1 - y) * 1.65, f.pixel)
    body = within(half - x.abs(), f.pixel) * standing
    rim = within(0.028 + 0.02 * height - (half - x.abs()).abs(), f.pixel) * standing
    # Crossed struts, closer together towards the tip, and the arch between the feet.
    across, along = x / half, 26 * y.clamp(min=0.01).sqrt()
    lattice = ramp(
        0.45, 0.75, torch.maximum((along + 2.6 * across).sin(), (along - 2.6 * across).sin())
    )
    arch = within(1 - (x / 0.22).square() - ((y - 1.02) / 0.24).square(), f.pixel)
    decks = sum(_box(f, -9, 9, low, high) for low, high in ((0.12, 0.17), (-0.28, -0.24)))
    iron = torch.maximum(rim, body * torch.maximum(0.45 + 0.55 * lattice, decks)) * (1 - arch)
    deck_edges = decks * within(half + 0.03 - x.abs(), f.pixel)
    over(image, torch.maximum(iron, deck_edges), rgb(0.36, 0.27, 0.20))


def _mount_fuji(image: Tensor, f: Fields) -> None:
    _gradient(image, f, rgb(0.36, 0.60, 0.92), rgb(0.93, 0.92, 0.93))
    side = torch.where(f.layout[:, 0] > 0.5, 1.0, -1.0)
    x = (f.X - side * 0.40).abs()
    top = -0.62
    # Slopes that flatten towards the foot, and a crater that cuts the tip off.
    slope = top + 1.45 * (1 - torch.exp(-(x - 0.09).clamp(min=0) * 1.25))
    mountain = within(f.Y - slope, f.pixel)
    lit = (0.9 + 0.25 * ((f.X - side * 0.40) * -6).tanh())[:, None]
    over(image, mountain, rgb(0.28, 0.35, 0.52) * lit)
    edge = -0.16 + 0.08 * (f.X * 26).sin() + 0.05 * (f.X * 47 + 1).sin()
    over(image, mountain * within(edge - f.Y, f.pixel), rgb(0.97, 0.97, 0.99) * lit.clamp(max=1))
    over(image, within(f.Y - 0.66 - 0.03 * (f.X * 7).sin(), f.pixel), rgb(0.24, 0.36, 0.24))


def _bike(image: Tensor, f: Fields) -> None:
    _gradient(image, f, rgb(0.55, 0.74, 0.94), rgb(0.88, 0.93, 0.95))
    bushes = -0.05 + 0.10 * (f.X * 5 + 6 * f.layout[:, 0]).sin() + 0.05 * (f.X * 13).sin()
    over(image, within(f.Y - bushes, f.pixel), rgb(0.25, 0.45, 0.20))
    over(image, within(f.Y - 0.45, f.pixel), rgb(0.52, 0.51, 0.50))


def _capsule(f: Fields, x1, y1, x2, y2, half) -> Tensor:
    dx, dy = x2 - x1, y2 - y1
    share = (((f.X - x1) * dx + (f.Y - y1) * dy) / (dx * dx + dy * dy)).clamp_(0, 1)
    distance = torch.hypot(f.X - x1 - share * dx, f.Y - y1 - share * dy)
    return within(half - distance, f.pixel)


def _arm(image: Tensor, f: Fields) -> None:
    # The arm that holds the camera leaves the picture in a lower corner.
    side = torch.where(f.layout[:, 6] > 0.5, 1.0, -1.0)
    sleeve = _capsule(f, side * 0.72, 1.0, side * 1.15, 0.62, 0.20)
    across = (side * f.X + f.Y - 1.70).abs()
    over(image, sleeve, f.fabric * (0.95 - 1.2 * across)[:, None])


def _handlebar(image: Tensor, f: Fields) -> None:
    bar = 0.80 + 0.10 * f.layout[:, 4]
    for side in (-1, 1):
        over(image, _capsule(f, f.x + side * 0.62, 0.62, side * 0.72, bar, 0.10), f.fabric * 0.8)
    curve = bar - 0.10 * f.X.square()
    metal = within(0.040 - (f.Y - curve).abs(), f.pixel) * within(0.92 - f.X.abs(), f.pixel)
    shine = (0.75 + 0.5 * ridge(f.Y - curve + 0.015, 0.015))[:, None]
    over(image, metal, rgb(0.62, 0.64, 0.67) * shine)
    over(image, _capsule(f, 0.0, bar, 0.0, 1.3, 0.06), f.backdrop_low * 0.8)
    over(image, within(0.10 - torch.hypot(f.X, f.Y - bar), f.pixel), rgb(0.12, 0.12, 0.13))
    over(image, within(0.065 - torch.hypot(f.X, f.Y - bar), f.pixel), rgb(0.98, 0.95, 0.75))
    for side in (-1, 1):
        end = bar - 0.07
        over(image, _capsule(f, side * 0.70, end, side * 0.93, end, 0.065), rgb(0.08, 0.08, 0.09))
        over(
            image, within(0.10 - torch.hypot(f.X - side * 0.76, f.Y - end), f.pixel), f.skin * 0.85
        )


def _mirror_frame(image: Tensor, f: Fields) -> None:
    for k, (offset, width) in enumerate(((0.9, 0.10), (1.5, 0.05))):
        glare = ridge(f.X + f.Y * 0.6 + offset - 1.9 * f.layout[:, 5] * (k + 1) * 0.5, width)
        image.add_(0.10 * glare[:, None])
    border = torch.maximum(f.X.abs(), f.Y.abs())
    over(image, within(border - 0.80, f.pixel), 0.5 * f.backdrop_low + rgb(0.12, 0.07, 0.02))
    bevel = ridge(border - 0.86, 0.03)[:, None]
    image.add_(0.28 * bevel * rgb(1, 0.9, 0.6))
    over(image, within(border - 0.93, f.pixel), 0.5 * f.backdrop + 0.45)


_SCENES = {
    "studio": _studio,
    "room": _room,
    "city": _city,
    "beach": _beach,
    "forest": _forest,
    "mirror": _mirror,
    "eiffel tower": _eiffel_tower,
    "mount fuji": _mount_fuji,
    "bike": _bike,
}
