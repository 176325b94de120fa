"""ISM and FDFR (arXiv 2303.15433): is this the same person, and is there a face at all."""

from collections.abc import Sequence
from statistics import fmean

import torch
import torch.nn.functional as F
from torch import Tensor


def reference_embedding(embeddings: Sequence[Tensor]) -> Tensor:
    """Return the mean of raw embeddings (d,); they are not normalized before, as in the paper."""
    return torch.stack(list(embeddings)).mean(dim=0)


def similarity(embedding: Tensor, reference: Tensor) -> float:
    """Return the cosine of two embeddings (d,), in [-1, 1]."""
    return float(F.cosine_similarity(embedding, reference, dim=0))


def over_detected(scores: Sequence[float | None]) -> float | None:
    """Return the mean over the images with a face, None if there are none; of similarities, ISM.

    A score is None where no face was found. Few survivors can make a flattering mean: read
    `failures_as_0` beside it.
    """
    detected = [score for score in scores if score is not None]
    return fmean(detected) if detected else None


def failures_as_0(scores: Sequence[float | None]) -> float:
    """Return the mean over all images, those without a face counting as 0."""
    return fmean(score or 0.0 for score in scores)


def fdfr(scores: Sequence[float | None]) -> float:
    """Return the face detection failure rate: the share of images without a face, in [0, 1]."""
    return fmean(score is None for score in scores)


def identity_retention(gallery: float, strangers: float, held_out: float) -> float | None:
    """Return (gallery - strangers) / (held_out - strangers): 0 a stranger, 1 the person.

    Each is a mean similarity to the same reference, with `failures_as_0`: of the gallery, of the
    uncustomized model's, and of the person's unseen photos. Not clipped. None where the person's
    own photos score no higher than strangers, for then the scale has no length.
    """
    if held_out <= strangers:
        return None
    return (gallery - strangers) / (held_out - strangers)
