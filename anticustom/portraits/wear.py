"""What a person puts on: glasses, hats, the clothes of the day."""

import torch
from torch import Tensor

from anticustom.portraits.faces import lamp, light
from anticustom.portraits.fields import Fields, over, paint_where, ramp, ridge, within


def glasses(image: Tensor, f: Fields) -> None:
    """Paint in place the glasses of those who wear some."""
    paint_where(image, f, lambda row: f.glasses[row] != "none", _glasses)


def _glasses(image: Tensor, f: Fields) -> None:
    power = torch.tensor([{"round": 2.0, "square": 6.0, "cat-eye": 3.5}[g] for g in f.glasses])[
        :, None, None
    ]
    tilt = torch.tensor([0.25 if g == "cat-eye" else 0.0 for g in f.glasses])[:, None, None]
    wide, high = 0.185 * f.frame_size, 0.150 * f.frame_size
    dx = (f.ax - f.eye_spacing - 0.01).clamp(min=-0.6)
    dy = f.hy - f.eye_y - 0.015 + tilt * dx
    lens = ((dx / wide).abs().pow(power) + (dy / high).abs().pow(power) + 1e-6).pow(1 / power) - 1
    half = (0.026 + 0.3 * f.edge) / wide
    rim = ramp(half * 1.3, half * 0.7, lens.abs())
    bridge = ridge(f.hy - f.eye_y + 0.02 - 0.3 * f.hx.square(), 0.022) * (
        f.ax < f.eye_spacing - wide
    )
    arm = ridge(f.hy - f.eye_y + 0.02, 0.022) * (f.ax > f.eye_spacing + wide)
    frame = torch.maximum(rim, torch.maximum(bridge, arm)) * f.inside
    glare = (
        ramp(0.0, -0.1, lens) * f.inside * (0.06 + 0.10 * ridge(dx + dy - 0.1 * f.light_x, 0.03))
    )
    image.add_(glare[:, None])
    over(image, frame, f.frame * light(f, f.diffuse))


def hats(image: Tensor, f: Fields) -> None:
    """Paint in place the hats of those who wear one, above the brows."""
    for hat, paint in (("beanie", _beanie), ("cap", _cap), ("brimmed", _brimmed)):
        paint_where(image, f, lambda row, hat=hat: f.hat[row] == hat, paint)


def _crown(f: Fields, extra: float, tall: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return a hat's dome mask, its lower line's signed distance and its light."""
    brow = f.eye_y - f.brow_height - 0.14
    above = (brow - f.hy) + 0.10 * f.hx.square()
    width = f.face_width * f.temple_width + extra
    x, y = f.sx / width, (f.sy / (f.skull_height + tall)).clamp(max=0)
    radius = (x.square() + y.square()).sqrt()
    dome = within((1 - radius) * width, f.edge) * within(above, f.edge)
    z = (1 - radius.square()).clamp(min=0.05).sqrt()
    return dome, above, light(f, lamp(f, x, y, z))


def _shadow(image: Tensor, f: Fields, above: Tensor) -> None:
    over(image, 0.40 * f.inside * ramp(-0.20, 0.0, above), f.skin * 0.2)


def _beanie(image: Tensor, f: Fields) -> None:
    dome, above, lit = _crown(f, 0.10, 0.16)
    _shadow(image, f, above)
    knit = 1 + 0.10 * (f.sx * 48).sin()
    over(image, dome, f.hat_fabric * lit * knit[:, None])
    over(image, dome * ramp(0.22, 0.19, above), f.hat_fabric * lit * (0.82 * knit)[:, None])


def _cap(image: Tensor, f: Fields) -> None:
    dome, above, lit = _crown(f, 0.08, 0.11)
    _shadow(image, f, above)
    over(image, dome, f.hat_fabric * lit)
    seam = ridge(f.hx, 0.015) + ridge(f.ax - 0.4, 0.015)
    over(image, 0.25 * dome * seam, f.hat_fabric * 0.4)
    visor_y = above - 0.04 + 0.10 * f.hx.square()
    visor = torch.hypot(f.hx / (0.78 * f.face_width + 0.05), visor_y / 0.13) - 1
    over(image, within(-visor * 0.12, f.edge), f.hat_fabric * 0.62 * lit)


def _brimmed(image: Tensor, f: Fields) -> None:
    dome, above, lit = _crown(f, 0.02, 0.24)
    _shadow(image, f, above)
    over(image, dome, f.hat_fabric * lit)
    over(image, dome * ramp(0.20, 0.18, above), f.hat_fabric * 0.35)
    brim = (
        torch.hypot(f.sx / (f.face_width * 1.55), (above - 0.06 - 0.06 * f.sx.square()) / 0.11) - 1
    )
    over(
        image,
        within(-brim * 0.10, f.edge),
        f.hat_fabric * 0.85 * light(f, torch.full_like(dome, 0.7)),
    )


def body(image: Tensor, f: Fields) -> None:
    """Paint in place the neck, the shoulders and the clothes of the day."""
    x, y = f.bx, f.by
    collar = f.chin_y + 0.22
    neck = within(f.neck_width * (1 + 0.35 * ramp(0.9, 1.5, y)) - x.abs(), f.edge) * (y > 0.2)
    round_ = (x / f.neck_width).clamp(-1, 1)
    seen = (0.45 + 0.35 * round_ * f.light_x).clamp(0, 1) * ramp(f.chin_y - 0.1, f.chin_y + 0.35, y)
    over(image, neck, f.skin * 0.92 * light(f, seen))
    shoulder = (
        collar
        - 0.10
        + 0.32 * (x.abs() - f.neck_width).clamp(min=0).pow(1.4)
        + 0.04 * ramp(0.8, 1.6, x.abs())
    )
    skin = within(y - shoulder, f.edge)
    over(image, skin, f.skin * 0.92 * light(f, seen))

    depth = {
        "t-shirt": (0.16, 2.2),
        "shirt": (0.30, 1.0),
        "sweater": (0.0, 2.0),
        "jacket": (0.42, 1.0),
    }
    table = torch.tensor([depth[c] for c in f.clothes])[..., None, None]
    opening = (1 - (x.abs() / (f.neck_width * 1.12)).pow(table[:, 1])).clamp(min=0) * table[:, 0]
    top = torch.maximum(shoulder - 0.025, collar - 0.10 + opening)
    jacket = torch.tensor([c == "jacket" for c in f.clothes])[:, None, None]
    white = jacket * within(y - collar - 0.02 + 0.14 * (x.abs() / f.neck_width), f.edge) * skin
    over(image, white, 0.9 * light(f, seen + 0.25))
    cloth = within(y - top, f.edge)
    folds = 0.06 * (x * 9 + 3 * (y * 5).sin()).sin() + 0.30 * f.light_x * x.clamp(-1, 1)
    lit = light(f, (0.62 + folds).clamp(0, 1))
    stripes = f.stripes * ramp(-0.1, 0.1, (y * 42).sin())
    fabric = f.fabric * (1 - 0.55 * stripes)[:, None] + 0.30 * stripes[:, None]
    over(image, cloth, fabric * lit)
    over(image, 0.45 * cloth * ramp(0.075, 0.055, y - top), f.fabric * 0.45 * lit)

    def turtleneck(image: Tensor, f: Fields) -> None:
        high = f.chin_y + 0.10 + 0.05 * (f.bx / f.neck_width).square()
        band = within(f.neck_width * 1.12 - f.bx.abs(), f.edge)
        mask = band * within(f.by - high, f.edge)
        rib = 0.85 + 0.08 * (f.bx * 50).sin()
        over(
            image,
            mask,
            f.fabric * light(f, (0.5 + 0.5 * f.light_x * f.bx).clamp(0, 1)) * rib[:, None],
        )

    paint_where(image, f, lambda row: f.clothes[row] == "sweater", turtleneck)
