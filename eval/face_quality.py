"""SER-FIQ: how stable the embedding of a face stays under dropout (arXiv 2003.09373)."""

import hashlib
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from eval.recognizers import Recognizer

MASKS = 100
# Slope and midpoint of the logistic scaling, per backbone, chosen for SFace so that 24 sharp photos
# of two people have a mean of 0.90 (raw 0.914) and 96 crops of 112 px without a face one of 0.04
# (raw 0.813). Between them lie the same photos shrunk to 64 px (0.88) and 24 px (0.74), at 512 px
# blurred with sigma 16 (0.43), and with Gaussian noise of standard deviation 0.6 (0.09).
# FaceNet is not calibrated.
SCALING = {"sface": (65.0, 0.88)}


def ser_fiq_raw(features: Tensor, recognizer: Recognizer, generator: torch.Generator) -> float:
    """Return SER-FIQ of one face, in (0, 1], higher is better, from `Recognizer.features` (1, f).

    It is 2 * sigmoid(-d) with d the mean Euclidean distance between the normalized embeddings of
    100 random sub-networks. Only the last layer differs between these, so the trunk runs once.
    The generator is a CPU generator.
    """
    kept = torch.rand((MASKS, features.shape[1]), generator=generator) >= recognizer.dropout
    masked = features * kept.to(features.device) / (1 - recognizer.dropout)
    distance = torch.pdist(F.normalize(recognizer.embed(masked), dim=1)).mean()
    return float(2 * torch.sigmoid(-distance))


def scaled(raw: float, backbone: str) -> float:
    """Return the score spread over (0, 1): near 0.9 for a good photo, near 0 without a face."""
    slope, midpoint = SCALING[backbone]
    return 1 / (1 + math.exp(-slope * (raw - midpoint)))


def generator_for(name: str) -> torch.Generator:
    """Return the generator of a file's dropout masks, keyed by its name.

    A score is thus independent of the other files, and images of the same name in two galleries
    meet the same masks.
    """
    key = hashlib.sha256(f"ser_fiq {name}".encode()).digest()[:8]
    return torch.Generator().manual_seed(int.from_bytes(key, "big"))
