import pytest
import torch
import torch.nn.functional as F
from helpers import refused

from eval.recognizers import load_recognizer, require_backbone


def pattern() -> torch.Tensor:
    y, x = torch.meshgrid(*[torch.arange(112, dtype=torch.float64)] * 2, indexing="ij")
    red = torch.sin(x / 9 + y / 17)
    green = torch.cos(x / 13 - y / 7)
    blue = torch.sin((x * x + y * y) / 1500)
    return (127.5 + 100 * torch.stack([red, green, blue])).round().float()[None] / 255


def test_sface_agrees_with_onnxruntime(sface):
    embedding = sface.embed(sface.features(pattern()))[0]
    # measured with onnxruntime on the ONNX file that the weights come from
    first = [0.15732816, -0.29622549, 1.08575273, 0.80077249, -0.54820478, 0.14315996]
    assert embedding.shape == (128,)
    torch.testing.assert_close(embedding[:6], torch.tensor(first), atol=2e-5, rtol=0)
    assert embedding.norm().item() == pytest.approx(5.4070134, abs=5e-5)


def test_embeddings_do_not_depend_on_the_batch(sface):
    crops = torch.rand(4, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    together = sface.embed(sface.features(crops))
    alone = torch.cat([sface.embed(sface.features(crop[None])) for crop in crops])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_unknown_backbone_is_refused():
    with pytest.raises(ValueError, match="backbone=arcface is unknown; choose one of sface"):
        load_recognizer("arcface")


def test_facenet_without_its_file_says_which(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with refused(r"20180402-114759-vggface2\.pt"):
        require_backbone("facenet")
    assert not any(tmp_path.iterdir())


def test_facenet_loads_a_release_file(monkeypatch, tmp_path):
    from facenet_pytorch import InceptionResnetV1

    torch.manual_seed(0)
    network = InceptionResnetV1().eval()
    network.logits = torch.nn.Linear(512, 4)  # the released file has its classifier in it
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    torch.save(network.state_dict(), tmp_path / "checkpoints" / "20180402-114759-vggface2.pt")

    facenet = load_recognizer("facenet")
    crops = torch.rand(2, 3, 160, 160)
    with torch.no_grad():
        expected = network((crops * 255 - 127.5) / 128)
    torch.testing.assert_close(F.normalize(facenet.embed(facenet.features(crops))), expected)
    assert facenet.dropout == 0.6
