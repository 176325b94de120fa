"""Networks that turn a face into an embedding: SFace (in the package) and FaceNet (optional)."""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

WEIGHTS = Path(__file__).parent / "weights"


@dataclass(frozen=True, kw_only=True)
class Recognizer:
    """A network in two parts, cut at the dropout before its last layer, where SER-FIQ needs it."""

    name: str
    trunk: nn.Module  # (n, 3, crop_size, crop_size) in [-1, 1] -> (n, features)
    head: nn.Module  # (n, features) -> raw embeddings (n, d), not normalized
    dropout: float  # rate the network was trained with
    crop_size: int
    aligned: bool  # takes five-point aligned crops, otherwise plain bounding boxes

    @torch.no_grad()
    def features(self, crops: Tensor) -> Tensor:
        """Return what enters the dropout, (n, features), of float32 crops in [0, 1]."""
        return self.trunk((crops * 255 - 127.5) / 128)

    @torch.no_grad()
    def embed(self, features: Tensor) -> Tensor:
        """Return the raw embeddings (n, d) of `features`."""
        return self.head(features)


def require_backbone(name: str) -> None:
    """Raise ValueError unless `name` is `sface`, or `facenet` with its weights on disk."""
    if name not in LOADERS:
        raise ValueError(f"backbone={name} is unknown; choose one of {', '.join(LOADERS)}")
    if name == "facenet" and not _facenet_file().is_file():
        raise ValueError(
            f"backbone=facenet needs {_facenet_file()}, a release file of facenet-pytorch; "
            "put it there (TORCH_HOME moves the folder) or choose backbone=sface"
        )


def weights_of(name: str) -> Path:
    """Return the file of the weights of the recognizer `name`."""
    return WEIGHTS / "sface.safetensors" if name == "sface" else _facenet_file()


def load_recognizer(name: str, device: torch.device | str = "cpu") -> Recognizer:
    """Return the recognizer `sface` or `facenet`; raises as `require_backbone`."""
    require_backbone(name)
    recognizer = LOADERS[name]()
    for part in (recognizer.trunk, recognizer.head):
        part.to(device).eval().requires_grad_(False)
    return recognizer


def _load_sface() -> Recognizer:
    """SFace (arXiv 2205.12010) on a MobileNet: 128-d embeddings; see weights/README.md."""
    network = _mobilenet()
    stored = load_file(weights_of("sface"))
    network.load_state_dict(
        {
            name: stored[name] if name in stored else _dequantized(stored, name, tensor.shape)
            for name, tensor in network.state_dict().items()
            if not name.endswith("num_batches_tracked")
        },
        strict=False,  # the counters of the batch norms matter to training only
    )
    return Recognizer(
        name="sface",
        trunk=network["features"],
        head=network["last"],
        dropout=0.4,
        crop_size=112,
        aligned=True,
    )


def _mobilenet() -> nn.ModuleDict:
    # output channels and stride of each depthwise-separable block
    blocks = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)]
    blocks += [(512, 1)] * 5 + [(1024, 2), (1024, 1)]
    layers, channels = [_convolution(3, 32, kernel=3)], 32
    for out, stride in blocks:
        layers.append(_convolution(channels, channels, kernel=3, stride=stride, groups=channels))
        layers.append(_convolution(channels, out, kernel=1))
        channels = out
    last = nn.Sequential(nn.Linear(channels * 7 * 7, 128), nn.BatchNorm1d(128, eps=2e-5))
    features = nn.Sequential(*layers, nn.BatchNorm2d(channels, eps=2e-5), nn.Flatten())
    return nn.ModuleDict({"features": features, "last": last})


def _convolution(channels: int, out: int, *, kernel: int, stride: int = 1, groups: int = 1):
    return nn.Sequential(
        nn.Conv2d(channels, out, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out, eps=1e-3),
        nn.PReLU(out),
    )


def _dequantized(stored: dict[str, Tensor], name: str, shape: torch.Size) -> Tensor:
    """Return (block of 8-bit integers - its zero point) * its scale, blocks along the last axis."""
    scale, zero_point = stored[f"{name}.scale"], stored[f"{name}.zero_point"]
    blocks = stored[f"{name}.int8"].unflatten(-1, (scale.shape[-1], -1)).float()
    return ((blocks - zero_point[..., None]) * scale[..., None]).reshape(shape)


def _load_facenet() -> Recognizer:
    """Inception-ResNet v1 trained on VGGFace2, as facenet-pytorch publishes it: 512-d."""
    from facenet_pytorch import InceptionResnetV1

    network = InceptionResnetV1()
    state = torch.load(_facenet_file(), map_location="cpu", weights_only=True)
    network.load_state_dict({k: v for k, v in state.items() if not k.startswith("logits.")})
    layers = list(network.children())
    cut = layers.index(network.dropout)
    return Recognizer(
        name="facenet",
        trunk=nn.Sequential(*layers[:cut], nn.Flatten()),
        head=nn.Sequential(network.last_linear, network.last_bn),
        dropout=network.dropout.p,
        crop_size=160,
        aligned=False,
    )


def _facenet_file() -> Path:
    from facenet_pytorch.models.inception_resnet_v1 import get_torch_home

    return Path(get_torch_home()) / "checkpoints" / "20180402-114759-vggface2.pt"


LOADERS = {"sface": _load_sface, "facenet": _load_facenet}
