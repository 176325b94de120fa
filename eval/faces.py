"""Find the largest face of an image and cut it out as a recognizer wants it."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from eval.recognizers import Recognizer

# left eye, right eye, nose, left and right corner of the mouth: x and y in a 112-px crop
LANDMARKS = (
    (38.2946, 51.6963),
    (73.5318, 51.5014),
    (56.0252, 71.7366),
    (41.5493, 92.3655),
    (70.7299, 92.2041),
)
# The shorter side of an image is brought into this range before detection. Measured on 24 real
# photos shrunk to 64 px: enlarged, their embeddings lie closer to those at 512 px (cosine 0.90
# instead of 0.87), and 160 px is as good as 256. The upper end saves time on large photos.
SHORTER_SIDE = (160, 640)


@dataclass(frozen=True)
class Face:
    box: tuple[float, float, float, float]  # left, top, right, bottom in pixels of the image
    probability: float
    crop: Tensor  # float32 (3, s, s) in [0, 1]


class FaceReader:
    """Detects with MTCNN (arXiv 1604.02878); its weights come with facenet-pytorch."""

    def __init__(self, recognizer: Recognizer, device: torch.device | str = "cpu") -> None:
        from facenet_pytorch import MTCNN

        self.recognizer = recognizer
        self.device = torch.device(device)
        self.detector = MTCNN(device=self.device, select_largest=True)

    def __call__(self, image: Tensor) -> Face | None:
        """Return the largest face of one image, float32 (3, h, w) in [0, 1], or None.

        Images are read one at a time, so that no result depends on its neighbours.
        """
        image, scale = _resized(image.to(self.device))
        boxes, probabilities, landmarks = self.detector.detect(
            (image * 255).permute(1, 2, 0), landmarks=True
        )
        if boxes is None:
            return None
        box = torch.tensor(boxes[0].tolist())
        size = self.recognizer.crop_size
        if self.recognizer.aligned:
            crop = aligned(image, torch.tensor(landmarks[0].tolist()), size)
        else:
            crop = _boxed(image, box, size)
        return Face(tuple((box / scale).tolist()), float(probabilities[0]), crop)


def _resized(image: Tensor) -> tuple[Tensor, float]:
    """Return the image with its shorter side within `SHORTER_SIDE`, and the factor."""
    shorter = min(image.shape[1:])
    scale = min(max(shorter, SHORTER_SIDE[0]), SHORTER_SIDE[1]) / shorter
    if scale == 1:
        return image, scale
    size = [round(side * scale) for side in image.shape[1:]]
    image = F.interpolate(image[None], size, mode="bicubic", antialias=scale < 1)[0]
    return image.clamp(0, 1), scale


def aligned(image: Tensor, landmarks: Tensor, size: int) -> Tensor:
    """Return the (3, size, size) crop in which five landmarks (5, 2) come to lie on the template.

    The map is the least-squares similarity transform. In the complex plane it is
    `target = a * source + b`, which has a closed form.
    """
    source = torch.complex(*landmarks.double().T)
    target = torch.complex(*torch.tensor(LANDMARKS, dtype=torch.float64).T) * (size / 112)
    centred = source - source.mean()
    a = (centred.conj() * (target - target.mean())).sum() / centred.abs().square().sum()
    b = target.mean() - a * source.mean()

    pixels = torch.arange(size, dtype=torch.float64)
    y, x = torch.meshgrid(pixels, pixels, indexing="ij")
    positions = (torch.complex(x, y) - b) / a
    height, width = image.shape[1:]
    grid = torch.stack(
        [(2 * positions.real + 1) / width - 1, (2 * positions.imag + 1) / height - 1], dim=-1
    )
    return F.grid_sample(image[None], grid.to(image)[None], align_corners=False)[0]


def _boxed(image: Tensor, box: Tensor, size: int) -> Tensor:
    """Return the (3, size, size) content of a bounding box, cut at the image's edge."""
    height, width = image.shape[1:]
    left, top, right, bottom = box.int().tolist()
    crop = image[:, max(top, 0) : min(bottom, height), max(left, 0) : min(right, width)]
    return F.interpolate(crop[None], (size, size), mode="bilinear", antialias=True)[0]
