import math

import numpy as np
import pytest
from PIL import Image

from eval.perceptibility import perceptibility


@pytest.fixture
def clean(tmp_path):
    folder = tmp_path / "clean"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(40, 200, (2, 32, 32, 3), dtype=np.uint8)
    return save(folder, {"a": pixels[0], "b": pixels[1]})


def save(folder, images):
    folder.mkdir(exist_ok=True)
    for name, pixels in images.items():
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return [folder / f"{name}.png" for name in images]


def pixels(file):
    return np.asarray(Image.open(file))


def test_known_differences(clean, tmp_path):
    shifted = pixels(clean[0]) + np.uint8(4)
    one_pixel = pixels(clean[1]).copy()
    one_pixel[3, 5, 1] -= 9
    scores = perceptibility(clean, save(tmp_path / "p", {"a": shifted, "b": one_pixel}))
    assert scores["linf"] == 9
    assert [row["linf"] for row in scores["images"]] == [4, 9]
    psnr = [10 * math.log10(255**2 / error) for error in (16, 81 / (32 * 32 * 3))]
    assert [row["psnr"] for row in scores["images"]] == pytest.approx(psnr)
    assert scores["psnr"] == pytest.approx(sum(psnr) / 2)
    assert 0.9 < scores["images"][0]["ssim"] < scores["images"][1]["ssim"] < 1
    assert [row["image"] for row in scores["images"]] == ["a.png", "b.png"]


def test_further_metrics_compare_each_pair(clean, tmp_path):
    def darker(protected, clean):
        return float((clean - protected).mean() * 255)

    darker.name = "darker"
    files = save(tmp_path / "p", {name.stem: pixels(name) - np.uint8(4) for name in clean})
    scores = perceptibility(clean, files, further=[darker])
    assert scores["darker"] == pytest.approx(4, rel=1e-5)
    assert [row["darker"] for row in scores["images"]] == pytest.approx([4, 4], rel=1e-5)


def test_identical_images_have_no_psnr_and_the_mean_leaves_them_out(clean, tmp_path):
    scores = perceptibility(clean, clean)
    assert (scores["linf"], scores["psnr"]) == (0, None)
    assert scores["ssim"] == pytest.approx(1)
    changed = save(tmp_path / "p", {"a": pixels(clean[0]) + np.uint8(4), "b": pixels(clean[1])})
    scores = perceptibility(clean, changed)
    assert scores["psnr"] == scores["images"][0]["psnr"]
    assert scores["images"][1]["psnr"] is None


def test_sizes_must_agree(clean, tmp_path):
    smaller = {file.stem: pixels(file)[:16] for file in clean}
    with pytest.raises(ValueError, match=r"a\.png is 32x16 px, but .*a\.png is 32x32 px"):
        perceptibility(clean, save(tmp_path / "p", smaller))


def test_files_pair_by_name(clean):
    with pytest.raises(ValueError, match=r"do not pair by name: a\.png, b\.png against b\.png"):
        perceptibility(clean, clean[::-1])
    with pytest.raises(ValueError, match="nothing against nothing"):
        perceptibility([], [])


def test_what_is_no_image_is_named(clean, tmp_path):
    broken = tmp_path / "p" / "a.png"
    broken.parent.mkdir()
    broken.write_text("no image")
    with pytest.raises(ValueError, match=r"a\.png is no readable image"):
        perceptibility(clean[:1], [broken])
