import numpy as np
import pytest
import torch
from helpers import refused
from PIL import Image

from anticustom import images
from anticustom.images import (
    check_eps,
    from_8bit,
    output_names,
    project,
    quantize_within,
    read_png,
    sign_step,
    to_8bit,
    write_png,
    write_protected,
)


def photos(n=3, size=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (n, 3, size, size), generator=generator) / 255


# Grey levels


def test_every_grey_level_survives_the_round_trip(tmp_path):
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16).expand(3, 16, 16)
    image = from_8bit(levels)
    assert image.dtype == torch.float32
    assert image.min() == 0
    assert image.max() == 1
    write_png(tmp_path / "a.png", image)
    assert torch.equal(read_png(tmp_path / "a.png"), image)
    assert torch.equal(to_8bit(image), levels)


def test_to_8bit_rounds_and_does_not_truncate():
    levels = to_8bit(torch.tensor([0.4, 0.6, 254.6, -3.0, 300.0]) / 255)
    assert levels.tolist() == [0, 1, 255, 0, 255]


@pytest.mark.parametrize("eps", [1, 8, 6.375, 255, np.float32(8)])
def test_check_eps_accepts(eps):
    check_eps(eps)


@pytest.mark.parametrize(
    "eps", [0, 0.05, 256, -8, float("nan"), float("inf"), "eight", "8", None, True]
)
def test_check_eps_refuses_in_one_line(eps):
    with refused("grey levels from 1 to 255") as error:
        check_eps(eps)
    assert repr(eps) in str(error.value)


def test_sign_step_moves_by_step_size_grey_levels():
    image = torch.full((1, 3, 1, 1), 100 / 255)
    gradient = torch.tensor([1e-9, 0.0, -7.0]).reshape(1, 3, 1, 1)
    moved = sign_step(image, gradient, 2.5) * 255
    assert moved.flatten().tolist() == pytest.approx([102.5, 100, 97.5], abs=1e-4)


def test_project_stays_in_the_ball_and_in_range_and_moves_nothing_else():
    clean = photos()
    near = (clean + 3 / 255).clamp(0, 1)
    assert torch.equal(project(near, clean, 4), near)
    for far in (clean + 0.5, clean - 0.5):
        projected = project(far, clean, 6.375)
        assert (projected - clean).abs().max() * 255 <= 6.375 + 1e-4
        assert projected.min() >= 0
        assert projected.max() <= 1
    grey = torch.full((1, 3, 2, 2), 128 / 255)
    assert torch.allclose(project(grey + 1, grey, 6.375) * 255, torch.tensor(134.375))


@pytest.mark.parametrize(("eps", "levels"), [(8, 8), (6.375, 6), (6.75, 6), (1, 1)])
def test_quantize_within_uses_the_ball_up_to_its_whole_levels(eps, levels):
    clean = torch.full((1, 3, 4, 4), 128 / 255)
    for sign in (1, -1):
        image = quantize_within(project(clean + sign, clean, eps), clean, eps)
        change = to_8bit(image).int() - 128
        assert (change == sign * levels).all()
        assert torch.equal(from_8bit(to_8bit(image)), image)


def test_quantize_within_stays_in_range():
    clean = torch.tensor([0.0, 1.0]).reshape(1, 1, 1, 2).expand(1, 3, 1, 2)
    image = quantize_within(torch.tensor([-0.5, 1.5]).expand(1, 3, 1, 2), clean, 8)
    assert torch.equal(image, clean)


# Writing


@pytest.mark.parametrize(
    ("names", "outputs"),
    [
        ("a.jpg b.png c.d.jpeg", "a.png b.png c.d.png"),
        ("a.jpg a.png b.jpg", "a.jpg.png a.png.png b.jpg.png"),
        ("a.jpg a.jpg.png a.png", "a.jpg.png a.jpg.png.png a.png.png"),
        ("a.jpg A.PNG", "a.jpg.png A.PNG.png"),
        ("", ""),
    ],
)
def test_output_names_become_png_and_never_collide(names, outputs):
    assert output_names(names.split()) == tuple(outputs.split())


@pytest.mark.parametrize("eps", [8, 6.375])
def test_write_protected_keeps_the_bound_in_the_files(tmp_path, eps):
    clean = photos(3)
    noise = torch.rand(clean.shape, generator=torch.Generator().manual_seed(1)) - 0.5
    protected = project(clean + noise, clean, eps)
    files = write_protected(tmp_path / "new", ["c.jpg", "a.png", "b.jpeg"], protected, clean, eps)
    assert [file.name for file in files] == ["c.png", "a.png", "b.png"]
    assert sorted(tmp_path.rglob("*.*")) == sorted(files)
    written = torch.stack([read_png(file) for file in files])
    change = to_8bit(written).int() - to_8bit(clean).int()
    assert change.abs().max() == int(eps)
    assert torch.equal(written, quantize_within(protected, clean, eps))
    assert all(Image.open(file).format == "PNG" for file in files)


def test_write_protected_keeps_photos_apart_that_differ_in_suffix_only(tmp_path):
    clean = photos(2)
    files = write_protected(tmp_path, ["a.jpg", "a.png"], clean, clean, 8)
    assert [file.name for file in files] == ["a.jpg.png", "a.png.png"]
    assert torch.equal(torch.stack([read_png(file) for file in files]), clean)


def test_write_protected_notices_a_file_outside_the_bound(tmp_path, monkeypatch):
    def write_jpeg(path, image):
        levels = to_8bit(image).permute(1, 2, 0).numpy()
        Image.fromarray(levels).save(path, format="JPEG", quality=30)

    monkeypatch.setattr(images, "write_png", write_jpeg)
    clean = photos(1)
    with pytest.raises(RuntimeError, match=r"a\.png.* grey levels off, with eps=8"):
        write_protected(tmp_path, ["a.png"], clean, clean, 8)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_write_protected_refuses_values_that_are_not_finite(tmp_path, value):
    clean = photos(2)
    protected = clean.clone()
    protected[1, 2, 3, 4] = value
    with pytest.raises(RuntimeError, match="precision=float32"):
        write_protected(tmp_path / "new", ["a.png", "b.png"], protected, clean, 8)
    assert not list(tmp_path.iterdir())


def test_write_protected_refuses_wrong_arguments_and_writes_nothing(tmp_path):
    clean = photos(2)
    with pytest.raises(ValueError, match="argument"):
        write_protected(tmp_path / "new", ["a.png"], clean, clean, 8)
    with pytest.raises(ValueError, match="grey levels"):
        write_protected(tmp_path / "new", ["a.png", "b.png"], clean, clean, 0.05)
    assert not list(tmp_path.iterdir())
