import cmath

import pytest
import torch
import torch.nn.functional as F
from torchvision.transforms.v2.functional import gaussian_blur

from eval.faces import LANDMARKS, aligned
from eval.identity import similarity
from eval.image_files import read_image


def dots(positions: torch.Tensor, size: int) -> torch.Tensor:
    """An image with a soft white dot at each (x, y)."""
    y, x = torch.meshgrid(*[torch.arange(float(size))] * 2, indexing="ij")
    distances = [(x - px) ** 2 + (y - py) ** 2 for px, py in positions.tolist()]
    return sum(torch.exp(-d / 18) for d in distances).clamp(0, 1).expand(3, size, size)


def test_alignment_undoes_scale_rotation_and_shift():
    turn = 1.7 * cmath.exp(0.4j)
    moved = [turn * complex(x, y) + complex(90, 30) for x, y in LANDMARKS]
    landmarks = torch.tensor([[z.real, z.imag] for z in moved])
    crop = aligned(dots(landmarks, 320), landmarks, 112)
    for x, y in LANDMARKS:
        assert crop[0, round(y), round(x)] > 0.9
    assert crop.mean() < 0.1  # dots only


def test_pixels_outside_the_image_are_black():
    landmarks = torch.tensor(LANDMARKS) - 40
    crop = aligned(torch.ones(3, 112, 112), landmarks, 112)
    assert crop[:, :39, :39].max() == 0
    assert crop[:, 41:, 41:].min() > 0.99


@pytest.mark.parametrize("size", [64, 200])
def test_images_without_a_face(reader, size):
    generator = torch.Generator().manual_seed(0)
    assert reader(torch.full((3, size, size), 0.5)) is None
    assert reader(torch.rand(3, size, size, generator=generator)) is None


def test_a_face_is_found_where_it_is_at_any_size(reader, people):
    photo = read_image(sorted((people[0] / "set_A").iterdir())[0])
    large = reader(photo)
    small = reader(F.interpolate(photo[None], (64, 64), mode="bicubic", antialias=True)[0])
    assert large.probability > 0.99
    assert large.crop.shape == (3, 112, 112)
    assert [side * 8 for side in small.box] == pytest.approx(large.box, abs=512 / 12)
    recognizer = reader.recognizer
    embeddings = [recognizer.embed(recognizer.features(f.crop[None]))[0] for f in (large, small)]
    assert similarity(*embeddings) > 0.75


@pytest.mark.parametrize("large", [0, 1])
def test_the_largest_face_is_read(reader, people, large):
    """Of two, though the detector is surer of the smaller, sharper one."""
    photos = [read_image(sorted((person / "set_A").iterdir())[0]) for person in people]
    blurred = gaussian_blur(photos[large], [61, 61], [12, 12])
    half = F.interpolate(photos[1 - large][None], (256, 256), mode="area")[0]
    both = torch.cat([blurred, F.pad(half, (0, 0, 0, 256))], dim=2)
    expected, smaller, found = reader(blurred), reader(half), reader(both)
    assert smaller.probability > expected.probability
    assert found.box == pytest.approx(expected.box, abs=12)
