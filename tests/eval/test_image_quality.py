import io
from statistics import mean
from urllib.error import URLError

import pytest
import torch
from helpers import refused
from PIL import Image
from pyiqa.models import inference_model
from torchvision.transforms.functional import pil_to_tensor

from eval.image_quality import FLAT, Brisque, PyIQA


def tensor(image: Image.Image) -> torch.Tensor:
    return pil_to_tensor(image.convert("RGB")).float() / 255


def texture(size: int) -> torch.Tensor:
    y, x = torch.meshgrid(*[torch.arange(float(size))] * 2, indexing="ij")
    waves = torch.sin(x / 5 + y / 3) + torch.cos(x * y / 300)
    return (0.5 + 0.2 * waves).clamp(0, 1).expand(3, size, size)


@pytest.mark.parametrize(("size", "highest", "lowest"), [(512, 25, 45), (64, 30, 40)])
def test_compression_scores_worse_than_the_photo(people, size, highest, lowest):
    brisque, natural, compressed = Brisque(), [], []
    for file in [f for person in people for f in sorted((person / "set_A").iterdir())[:2]]:
        photo = Image.open(file).convert("RGB").resize((size, size), Image.Resampling.LANCZOS)
        encoded = io.BytesIO()
        photo.save(encoded, "JPEG", quality=10)
        natural.append(brisque(tensor(photo)))
        compressed.append(brisque(tensor(Image.open(encoded))))
    assert mean(natural) < highest
    assert mean(compressed) > lowest
    assert all(after > before + 10 for before, after in zip(natural, compressed, strict=True))


@pytest.mark.parametrize("size", [64, 200])
def test_noise_scores_near_the_bad_end(size):
    noise = torch.rand(3, size, size, generator=torch.Generator().manual_seed(0))
    assert 80 < Brisque()(noise) < 110


def test_images_without_texture():
    stripes = torch.zeros(3, 64, 64)
    stripes[:, ::2] = 1
    for image in (torch.zeros(3, 64, 64), torch.full((3, 64, 64), 0.5), stripes):
        assert Brisque()(image) == FLAT == 100


def test_the_score_does_not_drift():
    assert Brisque()(texture(96)) == pytest.approx(70.03, abs=0.05)


def test_pyiqa_by_name():
    image = texture(64)
    ssim = PyIQA("ssim")
    assert ssim(image, image) == pytest.approx(1)
    assert ssim(image, image.flip(-1)) < 0.9
    assert ssim.compares
    assert not PyIQA("entropy").compares
    assert PyIQA("psnr")(image, (image + 0.1).clamp(0, 1)) == pytest.approx(20, abs=1)


def test_unknown_metric_is_refused():
    with pytest.raises(ValueError, match="pyiqa has no metric 'brisk'"):
        PyIQA("brisk")


class Faulty:
    """Stands in for a metric of pyiqa; its score is an argument."""

    metric_mode = "NR"

    def __init__(self, score):
        self.score = score

    def __call__(self, image):
        if self.score is None:
            raise AssertionError("two images\n are needed")
        return self.score


def test_a_metric_of_other_things_than_images_is_refused(monkeypatch):
    monkeypatch.setattr(inference_model, "InferenceModel", lambda *_, **__: Faulty(None))
    with pytest.raises(ValueError, match=r"'fid' of pyiqa does not score .*two images are needed"):
        PyIQA("fid")


def test_a_score_that_is_undefined_is_none(monkeypatch):
    monkeypatch.setattr(inference_model, "InferenceModel", lambda *_, **__: Faulty(float("nan")))
    assert PyIQA("niqe")(texture(64)) is None


def test_missing_weights_are_one_line(monkeypatch, tmp_path, capsys):
    from pyiqa.utils import download_util

    def no_network(*_, **__):
        raise URLError("no network")

    monkeypatch.setattr(download_util, "DEFAULT_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(download_util, "download_url_to_file", no_network)
    with refused("'niqe' of pyiqa cannot be loaded"):
        PyIQA("niqe")
    assert capsys.readouterr().out == ""
