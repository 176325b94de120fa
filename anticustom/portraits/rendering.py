"""From people and shots to pictures."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from anticustom.portraits import faces, hair, wear
from anticustom.portraits.fields import batch_fields, over
from anticustom.portraits.people import Person
from anticustom.portraits.scenes import paint_foreground, paint_scene
from anticustom.portraits.shots import Shot

_SUPERSAMPLING = 2
_PIXELS_AT_ONCE = 2**16  # what stays in a processor's cache


def render(people: Sequence[Person], shots: Sequence[Shot], size: int = 64) -> Tensor:
    """Return a portrait of each person in the shot beside it: float32 (n, 3, size, size) in [0, 1].

    A picture depends on its person, its shot and the size alone. Raises
    ValueError for lists of different length.
    """
    if len(people) != len(shots):
        raise ValueError(
            f"{len(people)} people and {len(shots)} shots: expected one shot per person"
        )
    at_once = max(1, _PIXELS_AT_ONCE // (size * _SUPERSAMPLING) ** 2)
    parts = [
        _render(people[start : start + at_once], shots[start : start + at_once], size)
        for start in range(0, len(people), at_once)
    ]
    return torch.cat(parts) if parts else torch.empty(0, 3, size, size)


@torch.no_grad()
def _render(people: Sequence[Person], shots: Sequence[Shot], size: int) -> Tensor:
    f = batch_fields(people, shots)
    fine = size * _SUPERSAMPLING
    faces.locate(f, fine)
    faces.shade(f)
    hair.prepare(f)

    image = torch.empty(len(people), 3, fine, fine)
    paint_scene(image, f)
    hair.behind(image, f)
    wear.body(image, f)
    faces.ears(image, f)
    face = faces.face(f)
    hair.beard(face, f)
    over(image, f.inside, face)
    wear.glasses(image, f)
    hair.in_front(image, f)
    wear.hats(image, f)
    paint_foreground(image, f)

    image = functional.avg_pool2d(image.clamp_(0, 1), _SUPERSAMPLING)
    image = (image * f.exposure[:, None]).pow_(1 / 1.12)
    for row, shot in enumerate(shots):
        grain = torch.Generator().manual_seed(shot.noise_seed)
        image[row] += shot.noise * torch.randn(3, size, size, generator=grain)
    return image.clamp_(0, 1)
