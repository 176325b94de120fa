"""Photos and images as the files of an artifact."""

import re
from pathlib import Path

import torch
from torch import Tensor

from anticustom.identities import PhotoSet
from anticustom.images import output_names, read_png
from experiments.store.artifacts import Artifact


def read_images(artifact: Artifact) -> tuple[tuple[str, ...], Tensor]:
    """Return names and images (n, 3, h, w) of an artifact of PNG files."""
    files = artifact.files
    return tuple(file.name for file in files), torch.stack([read_png(file) for file in files])


def photo_files(folder: Path, photos: PhotoSet) -> list[Path]:
    """Return the files in `folder` that a stage made of `photos`, in their order."""
    return [folder / name for name in output_names(photos.names)]


def read_back(clean: PhotoSet, folder: Path) -> PhotoSet:
    """Return the photos as the files in `folder` hold them, under the names of `clean`."""
    images = torch.stack([read_png(file) for file in photo_files(folder, clean)])
    return PhotoSet(clean.names, images)


def slug(text: str) -> str:
    """Return a prompt as a part of a file name; two prompts may have the same."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60] or "prompt"
