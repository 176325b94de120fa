"""The bare head: where each pixel lies on it, its relief, its skin, eyes, brows, nose and mouth."""

import torch
from torch import Tensor

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


def locate(f: Fields, size: int) -> None:
    """Add to the fields, for a picture of `size` pixels, where each of its pixels lies.

    X, Y: on the screen; bx, by: in head units, upright; sx, sy: rolled with the head; z: its depth;
    hx, hy: on the face, turned with the head, ax = |hx|; inside: the head's mask; pixel and edge:
    the width of a pixel on the screen and of an antialiased edge in head units.
    """
    n = len(f.scale)
    line = (torch.arange(size) + 0.5) / size * 2 - 1
    f.X = line.expand(n, size, size).contiguous()
    f.Y = line[:, None].expand(n, size, size).contiguous()
    f.pixel = 2 / size
    f.edge = (f.scale * f.pixel).clamp(min=0.012)

    bulge = 1 + f.lens * (f.X.square() + f.Y.square() - 0.5)
    f.bx, f.by = (f.X * bulge - f.x) * f.scale, (f.Y * bulge - f.y) * f.scale
    cos, sin = f.roll.cos(), f.roll.sin()
    f.sy = cos * f.by - sin * f.bx
    # The chin leads when the head turns.
    f.sx = cos * f.bx + sin * f.by - 0.24 * f.yaw.sin() * ramp(0.0, 1.0, f.sy)

    above = f.sy < 0
    f.half_width = f.face_width * torch.where(
        above,
        f.temple_width + (1 - f.temple_width) * ramp(-0.7, -0.05, f.sy),
        1 - (1 - f.jaw_width) * ramp(0.05, 1.0, f.sy / f.chin_y),
    )
    height = (f.sy / torch.where(above, f.skull_height, f.chin_y)).abs()
    power = torch.where(above, 2.5, f.jaw_square)
    f.radius = (f.sx / f.half_width).square() + height.clamp(min=1e-4).pow(power)
    f.inside = within((1 - f.radius) * 0.5 * f.face_width, f.edge)
    f.z = 0.80 * (1 - f.radius).clamp(min=0).sqrt()

    f.nose_y = f.eye_y + f.nose_length
    f.mouth_y = f.nose_y + f.mouth_drop
    _turn(f, f.z)
    _turn(f, f.z + 0.8 * _nose(f))


def _turn(f: Fields, depth: Tensor) -> None:
    f.hx = f.sx * f.yaw.cos() - depth * f.yaw.sin()
    f.hy = f.sy * f.pitch.cos() - depth * f.pitch.sin()
    f.hx = f.hx + f.asymmetry * f.hy
    f.ax = f.hx.abs()


def _nose(f: Fields) -> Tensor:
    tip = f.nose_tip * blob(f.hx, f.hy, 0, f.nose_y - 0.05, f.nose_width * 0.75, 0.10)
    top = f.eye_y - 0.08
    bridge = f.bridge_height * ridge(f.hx, f.bridge_width)
    bridge *= ramp(top, f.nose_y - 0.05, f.hy) * ramp(f.nose_y + 0.06, f.nose_y - 0.06, f.hy)
    return tip + bridge


def _fold(f: Fields, width: float) -> Tensor:
    # From the wings of the nose down to beside the mouth.
    share = (f.hy - f.nose_y + 0.05) / (f.mouth_drop + 0.10)
    middle = f.nose_width + 0.04 + (0.85 * f.mouth_width + 0.05 - f.nose_width) * share
    return ridge(f.ax - middle, width) * ramp(-0.3, 0.1, share) * ramp(1.4, 0.9, share)


def shade(f: Fields) -> None:
    """Add `diffuse` and `gloss` to the fields: how much light the skin returns at each pixel."""
    x, y, ax = f.hx, f.hy, f.ax
    smile = f.smile.clamp(min=0)
    z = f.z + _nose(f)
    z += 0.45 * f.nose_tip * blob(ax, y, f.nose_width * 0.72, f.nose_y, 0.05, 0.055)
    z -= (0.02 + f.eye_depth) * blob(ax, y, f.eye_spacing * 0.95, f.eye_y - 0.01, 0.16, 0.10)
    z += 0.035 * blob(ax, y, f.eye_spacing, f.eye_y, f.eye_width * 0.7, 0.07)
    z += f.brow_ridge * blob(ax, y, 0.24, f.eye_y - f.brow_height * 0.9, 0.20, 0.06)
    z += f.forehead_bulge * blob(x, y, 0, -0.5, 0.35, 0.2)
    raised = f.cheekbone + 0.06 * smile
    z += raised * blob(ax, y, 0.62 * f.face_width, f.cheek_y - 0.03 * smile, 0.17, 0.13)
    z -= f.cheek_hollow * blob(ax, y, 0.66 * f.face_width, f.cheek_y + 0.28, 0.14, 0.16)
    lips = f.upper_lip + f.lower_lip
    z += 0.6 * lips * blob(x, y, 0, f.mouth_y, f.mouth_width * 0.9, 0.04 + 0.6 * lips)
    z -= 0.035 * blob(x, y, 0, f.mouth_y + f.lower_lip + 0.07, 0.16, 0.035)
    z += f.chin_bump * blob(x, y, 0, f.chin_y * 0.86, 0.17, 0.10)
    z -= f.chin_cleft * blob(x, y, 0, f.chin_y * 0.86, 0.025, 0.07)
    z -= 0.02 * blob(x, y, 0, f.nose_y + 0.5 * f.mouth_drop, 0.03, 0.05)
    # Folds of age and laughter: from nose to mouth, under the eyes, across the forehead.
    wrinkled = ramp(38, 76, f.age)
    z -= (0.012 + 0.022 * smile + 0.035 * wrinkled) * _fold(f, 0.035)
    under = y - f.eye_y - 1.6 * f.eye_open - 0.035 + 1.2 * (ax - f.eye_spacing).square()
    z -= 0.025 * f.bags * ridge(under, 0.025) * ridge(ax - f.eye_spacing, 0.15)
    lines = (y * 62 + 5 * x.square()).sin() * blob(x, y, 0, -0.47, 0.4, 0.14)
    z += 0.006 * wrinkled * lines

    down, across = torch.gradient(z, dim=(1, 2))
    step = f.pixel * f.scale
    down, across = down / step, across / step
    length = (1 + down.square() + across.square()).sqrt_()
    norm = (1 + f.light_x.square() + f.light_y.square()).sqrt()
    facing = (1 - across * f.light_x - down * f.light_y) / (length * norm)
    f.diffuse = ((facing + 0.22) / 1.22).clamp_(0, 1)
    # Half way between the light and the viewer, who looks along z.
    half_z = 1 + norm
    half = (f.light_x.square() + f.light_y.square() + half_z.square()).sqrt()
    mirrored = (half_z - across * f.light_x - down * f.light_y) / (length * half)
    f.gloss = mirrored.clamp_(0, 1).pow_(16)


def lamp(f: Fields, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """Return how much of the lamp a surface with the normal (x, y, z) sees, 0 to 1."""
    norm = (1 + f.light_x.square() + f.light_y.square()).sqrt()
    return ((x * f.light_x + y * f.light_y + z) / norm).clamp_(0, 1)


def light(f: Fields, amount: Tensor) -> Tensor:
    """Return the colour (n, 3, h, w) of the light that falls where `amount` of the lamp is seen."""
    tint = torch.cat([1 + f.warmth, torch.ones_like(f.warmth), 1 - f.warmth], 1)[..., None]
    return (f.ambient + (1 - f.ambient) * 1.22 * amount)[:, None] * tint


def face(f: Fields) -> Tensor:
    """Return the lit face (n, 3, h, w), valid where `inside` is."""
    colour = f.skin.expand(-1, 3, *f.hx.shape[1:]).clone()
    _complexion(colour, f)
    _brows(colour, f)
    _eyes(colour, f)
    _nostrils(colour, f)
    _mouth(colour, f)
    colour *= light(f, f.diffuse)
    colour += (0.13 * f.gloss)[:, None]
    catch = torch.hypot(
        f.ax - f.eye_spacing - f.hx.sign() * (f.gaze * 0.1 + 0.02 * f.light_x),
        f.hy - f.eye_y + 0.022,
    )
    over(colour, 0.9 * ramp(0.028, 0.010, catch) * f.eye_mask, torch.ones(1, 3, 1, 1))
    return colour


def texture(f: Fields, frequency: float) -> Tensor:
    """Return smooth noise (n, h, w) in [0, 1], the same at the same place of the same face."""
    return noise(f.hx, f.hy, frequency, f.identity.remainder(997))


def _complexion(colour: Tensor, f: Fields) -> None:
    x, y, ax = f.hx, f.hy, f.ax
    red = blob(ax, y, 0.58 * f.face_width, f.cheek_y + 0.02, 0.17, 0.13)
    red += blob(x, y, 0, f.nose_y - 0.02, 0.10, 0.08)
    over(colour, (0.10 + 0.25 * f.blush) * red, f.skin * rgb(1.0, 0.68, 0.66))
    hollow = blob(ax, y, f.eye_spacing * 0.95, f.eye_y - 0.01, 0.17, 0.10)
    over(colour, (0.12 + 1.6 * f.eye_depth) * hollow, f.skin * rgb(0.55, 0.46, 0.46))
    under = blob(ax, y, f.eye_spacing * 0.92, f.eye_y + 1.5 * f.eye_open + 0.03, 0.12, 0.035)
    over(colour, 0.35 * f.bags * under, f.skin * rgb(0.58, 0.46, 0.50))
    colour *= (0.95 + 0.10 * texture(f, 6.0))[:, None]
    paint_where(colour, f, lambda row: f.freckles[row] > 0, _freckles)
    mole = ramp(0.034, 0.020, torch.hypot(x - f.mole_x, y - f.mole_y))
    over(colour, 0.85 * f.mole * mole, f.skin * rgb(0.35, 0.25, 0.22))
    wrinkled = ramp(38, 76, f.age)
    fold = _fold(f, 0.028)
    beside = ax - f.eye_spacing - f.eye_width
    corner = ridge(y - f.eye_y - 0.25 * beside, 0.02) + ridge(y - f.eye_y + 0.45 * beside, 0.016)
    corner *= ridge(beside - 0.08, 0.05)
    forehead = ramp(0.55, 1.0, (y * 62 + 5 * x.square()).sin()) * blob(x, y, 0, -0.46, 0.36, 0.15)
    creases = (fold + 0.8 * corner + 0.7 * forehead) * wrinkled + 0.25 * fold * f.smile.clamp(min=0)
    over(colour, (0.45 * creases).clamp_(0, 0.6), f.skin * rgb(0.48, 0.36, 0.33))


def _freckles(colour: Tensor, f: Fields) -> None:
    spots = ramp(0.60, 0.80, texture(f, 20.0)) * blob(f.hx, f.hy, 0, f.cheek_y - 0.05, 0.60, 0.34)
    over(colour, 0.80 * f.freckles * spots, f.skin * rgb(0.62, 0.42, 0.32))


def _brows(colour: Tensor, f: Fields) -> None:
    along = f.ax - f.eye_spacing
    raised = f.brow_height + 0.02 * f.smile
    middle = f.eye_y - raised - f.brow_tilt * along + f.brow_arch * along.square()
    reach = f.brow_length * f.eye_width
    ends = ramp(reach * 1.15, reach * 0.8, along.abs())
    thickness = f.brow_thickness * (1.15 - 0.45 * along / reach).clamp(min=0.4)
    hairs = ramp(1.25, 0.6, ((f.hy - middle) / thickness).abs_()) * ends
    over(colour, f.brow_density * hairs, f.hair * 0.6)


def _eyes(colour: Tensor, f: Fields) -> None:
    side = f.hx.sign()
    dx, dy = f.ax - f.eye_spacing, f.hy - f.eye_y
    ey = dy + f.eye_tilt * dx
    span = (1 - (dx / f.eye_width).square()).clamp(min=0)
    opening = f.eye_open * f.eye_openness * (1 - 0.22 * f.smile.clamp(min=0))
    upper, lower = ey + opening * span.pow(0.75), opening * 0.72 * span - ey
    f.eye_mask = ramp(0, 0.020, torch.minimum(upper, lower)) * (span > 0)
    over(colour, f.eye_mask, rgb(0.95, 0.93, 0.91))
    radius = 0.062 * f.iris_size
    away = torch.hypot(dx - side * f.gaze * 0.10, dy + 0.006)
    iris = f.eye_mask * ramp(radius + 0.010, radius - 0.010, away)
    over(colour, iris, f.iris * (0.55 + 0.75 * ramp(radius, 0.3 * radius, away))[:, None])
    pupil = f.eye_mask * ramp(0.46 * radius + 0.008, 0.46 * radius - 0.008, away)
    over(colour, pupil, rgb(0.02, 0.02, 0.02))
    over(colour, 0.45 * f.eye_mask * ramp(0.045, 0.0, upper), rgb(0.25, 0.20, 0.20))
    ends = ramp(1.18, 1.02, dx.abs() / f.eye_width)
    over(colour, (0.45 + 0.5 * f.lashes) * ridge(upper, 0.016) * ends, rgb(0.07, 0.05, 0.05))
    over(colour, 0.30 * ridge(lower, 0.013) * ends, f.skin * 0.4)
    crease = ridge(upper + f.lid_fold, 0.014) * ramp(1.15, 0.85, dx.abs() / f.eye_width)
    over(colour, 0.45 * crease, f.skin * rgb(0.45, 0.36, 0.35))


def _nostrils(colour: Tensor, f: Fields) -> None:
    holes = blob(f.ax, f.hy, f.nose_width * 0.48, f.nose_y + 0.028, f.nose_width * 0.26, 0.018)
    over(colour, (0.35 + 0.5 * f.nostrils) * holes, f.skin * 0.18)
    wing = torch.hypot((f.ax - f.nose_width * 0.75) / 0.9, f.hy - f.nose_y) - 0.058
    side = (
        ridge(wing, 0.014)
        * ramp(f.nose_width * 0.75, f.nose_width * 0.95, f.ax)
        * ramp(0.07, 0.03, (f.hy - f.nose_y).abs())
    )
    over(colour, 0.40 * side, f.skin * rgb(0.45, 0.34, 0.32))
    over(colour, 0.28 * blob(f.hx, f.hy, 0, f.nose_y + 0.055, f.nose_width, 0.030), f.skin * 0.45)


def _mouth(colour: Tensor, f: Fields) -> None:
    width = f.mouth_width * (1 + 0.18 * f.smile)
    along = f.hx / width
    span = (1 - along.square()).clamp(min=0)
    bend = (f.mouth_curve + 0.065 * f.smile) * (span - 0.5) + 0.012 * ridge(along, 0.25)
    gap = 0.065 * (f.smile - 0.45).clamp(min=0)
    line = f.hy - f.mouth_y - bend
    bow = 1 - 0.28 * ridge(along, 0.16)
    top = line + gap * 0.5 * span + f.upper_lip * span.pow(0.7) * bow
    bottom = gap * span + f.lower_lip * span.pow(0.6) - line
    inside = span > 0
    lips = ramp(0, 0.022, torch.minimum(top, bottom)) * inside
    over(colour, 0.88 * lips, f.lips)
    over(colour, 0.35 * lips * ramp(0.0, -0.03, line), f.lips * 0.6)
    opened = ramp(0, 0.012, torch.minimum(line + gap * 0.5 * span, gap * span - line)) * inside
    over(colour, opened, rgb(0.93, 0.91, 0.86))
    over(colour, 0.7 * ridge(line - gap * span, 0.012 + 0.2 * gap) * inside, f.lips * 0.22)
    over(colour, 0.6 * blob(along.abs(), f.hy, 1.0, f.mouth_y + bend, 0.09, 0.022), f.skin * 0.35)


def ears(image: Tensor, f: Fields) -> None:
    """Paint in place the ears that no hair covers."""
    bare = torch.tensor([style not in ("bob", "long", "curly") for style in f.hair_style])
    x = f.sx.abs() - f.face_width * 0.99 + 0.25 * f.yaw.sin() * f.sx.sign()
    y = f.sy - 0.12 + 0.25 * x - 0.5 * f.pitch
    radius = (x / (0.11 * f.ear_size)).square() + (y / (0.21 * f.ear_size)).square()
    mask = within((1 - radius) * 0.05, f.edge) * bare[:, None, None]
    side = (0.45 + 0.4 * f.light_x * f.sx.sign()).clamp(0, 1)
    over(image, mask, f.skin * rgb(1.0, 0.88, 0.86) * light(f, side))
    over(image, 0.45 * mask * ramp(0.55, 0.15, radius), f.skin * rgb(0.55, 0.40, 0.38))
