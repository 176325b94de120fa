"""What grows on a head: hair and beards."""

import torch
from torch import Tensor

from anticustom.portraits.faces import lamp, light, texture
from anticustom.portraits.fields import Fields, blob, over, paint_where, ramp, ridge, within

# Per style: volume, opacity, hairline lift, lift at the temples, fall beside the parting,
# how far down the sides reach, how far in they close over the face, curls.
_HAIR = {
    "bald": (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0),
    "buzzed": (0.15, 0.85, 0.0, 0.05, 0.0, 0.05, 0.0, 0.0),
    "short": (0.7, 1.0, 0.0, 0.02, 0.10, 0.10, 0.0, 0.15),
    "receding": (0.4, 0.95, 0.10, 0.28, 0.0, 0.08, 0.0, 0.1),
    "fringe": (0.9, 1.0, -0.22, 0.0, 0.0, 0.15, 0.05, 0.15),
    "parted": (1.0, 1.0, 0.06, 0.0, 0.55, 0.12, 0.0, 0.1),
    "curly": (1.5, 1.0, 0.0, 0.0, 0.15, 0.35, 0.10, 1.0),
    "bob": (1.0, 1.0, 0.03, 0.0, 0.40, 0.75, 0.20, 0.1),
    "long": (1.0, 1.0, 0.03, 0.0, 0.45, 2.0, 0.15, 0.15),
    "bun": (0.3, 1.0, 0.04, 0.06, 0.12, 0.05, 0.0, 0.05),
}


def prepare(f: Fields) -> None:
    """Add the hair's outline and light to the fields."""
    table = torch.tensor([_HAIR[style] for style in f.hair_style])[..., None, None]
    names = ("bulk", "opacity", "lift", "temples", "fall", "length", "closing", "curls")
    for k, name in enumerate(names):
        setattr(f, f"hair_{name}", table[:, k])
    # A hat presses the hair down.
    pressed = torch.tensor([0.35 if hat != "none" else 1.0 for hat in f.hat])[:, None, None]
    volume = f.hair_bulk * f.hair_volume * pressed + 0.012
    curl = pressed * f.hair_curls * 0.035 * ((f.sx * 21).sin() + (f.sy * 23 + 1).sin())
    y = f.sy + 0.06
    down = ramp(0.0, 0.5, f.sy)
    across = f.sx / (f.face_width * f.temple_width + volume * (1 + 0.35 * down))
    top = (y / (f.skull_height + volume)).clamp(max=0)
    bottom = ((f.sy - f.hair_length + 0.20) / 0.40).clamp(min=0)
    radius = (across.square() + top.abs().pow(2.4) + bottom.square() + 1e-6).sqrt()
    f.hair_shell = within((1 - radius + curl) * f.face_width, f.edge)
    z = (1 - radius.square()).clamp(min=0.02).sqrt()
    # Strands run like meridians from the crown, then hang down.
    meridian = f.sx / (1.02 - (f.sy.clamp(-1.1, 0) / 1.15).square()).sqrt()
    strands = (meridian * 55 + 5 * texture(f, 2.0)).sin() * texture(f, 8.0)
    curls = (f.sx * 27 + 2 * (f.sy * 11).sin()).sin() * (f.sy * 25 + 2 * (f.sx * 13).sin()).sin()
    grain = 1 + 0.30 * strands * (1 - f.hair_curls) + 0.35 * curls * f.hair_curls
    f.hair_light = light(f, lamp(f, across, top, z)) * (0.92 * grain)[:, None]
    sheen = ridge(f.sy + 0.62 * f.skull_height - 0.12 * f.light_y, 0.13) * (0.6 + 0.4 * strands) * z
    f.hair_strands = strands
    f.hair_sheen = 0.13 * sheen * (1 - 0.7 * f.hair_curls)


def _hair_colour(f: Fields) -> Tensor:
    return f.hair * f.hair_light + f.hair_sheen[:, None] * (0.35 + 0.65 * f.hair)


def behind(image: Tensor, f: Fields) -> None:
    """Paint in place the hair behind the neck."""
    end = ramp(f.hair_length + 0.10, f.hair_length - 0.04, f.sy + 0.05 * (f.sx * 9).sin())
    falling = torch.where(f.hair_length > 0.5, end, ramp(0.25, 0.0, f.sy))
    over(image, f.hair_shell * falling * (f.hair_opacity > 0), _hair_colour(f) * 0.75)

    def bun(image: Tensor, f: Fields) -> None:
        knot = torch.hypot(f.sx - 0.1 * f.part_side, f.sy + f.skull_height + 0.10)
        over(image, within(0.25 - knot, f.edge), _hair_colour(f) * 0.9)

    paint_where(image, f, lambda row: f.hair_style[row] == "bun" and f.hat[row] == "none", bun)


def in_front(image: Tensor, f: Fields) -> None:
    """Paint in place the hair over the forehead and beside the face."""
    side = f.hx - 0.28 * f.part_side * f.face_width
    jagged = 0.05 * f.hair_strands + 0.02 * (f.hx * 15 + f.identity).sin()
    fringe = f.eye_y - f.brow_height + 0.02
    line = f.hairline - f.hair_lift
    line = torch.where(f.hair_lift < 0, torch.minimum(line, fringe), line)
    line = line + f.hair_fall * side.abs() + jagged + f.hair_curls * 0.035 * (f.hx * 19).sin()
    line = line - f.hair_temples * ridge(f.ax - 0.55 * f.face_width, 0.17)
    temple = ramp(0.66, 0.95, f.ax / f.face_width)
    line = line + (f.hair_length.clamp(max=0.4) - line) * temple
    covered = within(line - f.hy, f.edge * 1.5)
    # Curtains: long sides that close over the ears and the edge of the face.
    inner = f.face_width * (1.02 - f.hair_closing - 0.10 * ramp(0.0, 0.6, f.sy))
    curtain = within(f.sx.abs() - inner, 2 * f.edge)
    curtain *= ramp(f.hair_length, f.hair_length - 0.10, f.sy)
    covered = torch.maximum(covered, curtain * (f.hair_closing > 0) * ramp(-0.45, -0.25, f.sy))
    shadow = ramp(0.16, 0.0, f.hy - line) * f.inside * f.hair_opacity
    over(image, 0.22 * shadow, f.skin * 0.25)
    over(image, f.hair_shell * covered * f.hair_opacity, _hair_colour(f))


def beard(colour: Tensor, f: Fields) -> None:
    """Paint in place the beards on the face's colour, before it is part of the picture."""
    paint_where(colour, f, lambda row: f.beard[row] != "none", _beard)


def _beard(colour: Tensor, f: Fields) -> None:
    below = (f.hy - f.mouth_y - 0.01) / (0.03 + f.lower_lip)
    free = ramp(0.75, 1.15, torch.hypot(f.hx / (f.mouth_width * 1.08), below))
    middle, height = 0.42 * f.mouth_width, f.nose_y + 0.62 * f.mouth_drop
    moustache = ramp(0.25, 0.6, blob(f.ax, f.hy, middle, height, f.mouth_width * 0.75, 0.055))
    chin = ramp(0.2, 0.55, blob(f.hx, f.hy, 0, f.mouth_y + 0.15, f.mouth_width * 1.25, 0.26))
    # From below the lips the edge climbs towards the ears.
    edge = f.mouth_y + 0.02 - 0.95 * (f.ax - 0.9 * f.mouth_width).clamp(min=0)
    cheeks = ramp(-0.03, 0.09, f.hy - edge)
    shapes = {
        "stubble": 0.42 * torch.maximum(cheeks, moustache),
        "moustache": moustache,
        "goatee": torch.maximum(moustache, chin),
        "full": torch.maximum(cheeks, moustache),
    }
    mask = torch.stack([shapes[shape][row] for row, shape in enumerate(f.beard)])
    grain = 0.8 + 0.4 * texture(f, 22.0)
    lit = light(f, f.diffuse) * grain[:, None]
    over(colour, (f.beard_density * mask * free).clamp(0, 1), f.hair * 0.8 * lit)
