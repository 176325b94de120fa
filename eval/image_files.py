"""Image files as tensors."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor


def read_image(file: Path) -> Tensor:
    """Return one image as float32 (3, h, w) in [0, 1], upright and in RGB.

    Raises ValueError when the file is missing or no image.
    """
    try:
        with Image.open(file) as image:
            image = ImageOps.exif_transpose(image).convert("RGB")
    except OSError as error:
        raise ValueError(f"{file} is no readable image ({error}); give a PNG or JPEG") from None
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().to(torch.float32) / 255
