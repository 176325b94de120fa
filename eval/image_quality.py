"""Image quality without a reference: BRISQUE offline, and pyiqa's other metrics by name."""

import contextlib
import io
import logging
import math

import torch
from safetensors.torch import load_file
from torch import Tensor

from eval.recognizers import WEIGHTS

# What an image without any texture scores: the worst end of the nominal range 0..100.
FLAT = 100.0
LIVE = WEIGHTS / "brisque_live.safetensors"


class Brisque:
    """BRISQUE (Mittal et al. 2012) by pyiqa's implementation, with its authors' LIVE model."""

    def __init__(self) -> None:
        self.model = load_file(LIVE)

    def __call__(self, image: Tensor) -> float:
        """Return the score of one image, float32 (3, h, w) in [0, 1], at its full size.

        Nominally 0 (best) to 100 (worst); unusual images leave this range on either side. An image
        of constant brightness, or one whose statistics are undefined (stripes of one pixel),
        scores 100.
        """
        # Inside, because importing pyiqa takes seconds.
        from pyiqa.archs.brisque_arch import brisque
        from pyiqa.utils.color_util import to_y_channel

        # In float32 the look-up tables of pyiqa are coarse: scores at 512 px are off by up to 0.8.
        image = image.cpu().double()[None]
        luma = to_y_channel(image, 255.0)
        if luma.min() == luma.max():
            return FLAT
        vectors, coefficients = self.model["support_vectors"], self.model["coefficients"]
        score = float(brisque(image, sv=vectors, sv_coef=coefficients))
        return score if math.isfinite(score) else FLAT


class PyIQA:
    """Any metric of pyiqa that scores one image, by its name, such as `musiq` or `lpips`.

    One of full reference (`compares`) takes the image that it is compared with, too. Most need
    weights that pyiqa downloads on first use. Raises ValueError for an unknown name, for a metric
    of other things, such as whole sets of images, and where the weights can be had neither from
    disk nor from the network.
    """

    def __init__(self, name: str, device: torch.device | str = "cpu") -> None:
        from pyiqa import list_models
        from pyiqa.models.inference_model import InferenceModel

        if name not in list_models():
            raise ValueError(f"pyiqa has no metric {name!r}; pyiqa.list_models() names them all")
        # pyiqa logs every network it builds through a handler of its own, past our settings.
        logging.getLogger("pyiqa").setLevel(logging.WARNING)
        try:
            # It prints where it loads weights from.
            with contextlib.redirect_stdout(io.StringIO()):
                self.metric = InferenceModel(name, device=torch.device(device))
        except (OSError, ImportError) as error:
            raise ValueError(
                f"metric {name!r} of pyiqa cannot be loaded ({error}); "
                "run it once with a network connection, or leave it out"
            ) from None
        self.name = name
        self.device = torch.device(device)
        self.compares = self.metric.metric_mode == "FR"
        trial = torch.rand(3, 256, 256, generator=torch.Generator().manual_seed(0))
        try:
            self(trial, *[trial] * self.compares)
        except Exception as error:  # each of pyiqa's many metrics has its own
            raise ValueError(
                f"metric {name!r} of pyiqa does not score single images "
                f"({' '.join(str(error).split())}); leave it out"
            ) from error

    def __call__(self, image: Tensor, reference: Tensor | None = None) -> float | None:
        """Return the score of one image, float32 (3, h, w) in [0, 1]; None where it is undefined.

        A metric that compares does so with `reference`, of the same shape.
        """
        references = () if reference is None else (reference[None].to(self.device),)
        score = float(self.metric(image[None].to(self.device), *references))
        return score if math.isfinite(score) else None
