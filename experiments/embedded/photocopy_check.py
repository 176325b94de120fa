"""Whether a victim is a model of the person or a photocopier of the photos."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from anticustom.images import read_png
from anticustom.portraits import person
from eval.identity import reference_embedding
from experiments.embedded.attribute_reader import trained_reader
from experiments.embedded.model_check import Embeddings
from experiments.store.artifacts import MANIFEST, Artifact

# the prompt, the attribute it asks for, and the value that it has where the prompt is followed
ASKED = {
    "a photo of sks person with glasses": ("glasses", "yes"),
    "a photo of sks person wearing a red hat": ("hat", "yes"),
    "a photo of sks person on the beach": ("scene", "beach"),
    "a photo of sks person in a forest": ("scene", "forest"),
}
PROMPTS = tuple(ASKED)


def artifacts(output_dir: Path, stage: str) -> list[Artifact]:
    manifests = sorted((output_dir / "store" / stage).glob(f"*/*/{MANIFEST}"))
    return [Artifact(file.parent, json.loads(file.read_text())) for file in manifests]


def folder_of(output_dir: Path, stage: str, digest: str) -> Path:
    """Return the folder of the artifact with this digest; raises ValueError if it is gone."""
    for artifact in artifacts(output_dir, stage):
        if artifact.digest == digest:
            return artifact.path
    raise ValueError(f"{output_dir}/store/{stage} has no artifact {digest}: run the check again")


def photos(record: Mapping, output_dir: Path) -> dict[str, Tensor]:
    """Return the clean sets A, B and C of a record."""
    for artifact in artifacts(output_dir, "photos"):
        if artifact.manifest["inputs"] == record["digests"]["photos"]:
            return {letter: pngs(artifact.path / f"set_{letter}") for letter in "ABC"}
    raise ValueError(f"{output_dir}/store/photos lacks those of {record['identity']}: run again")


def pngs(folder: Path) -> Tensor:
    return torch.stack([read_png(file) for file in sorted(folder.rglob("*.png"))])


def closeness(found: Sequence[Mapping], output_dir: Path) -> dict[str, list[float]]:
    """Return for SSIM and for SFace's cosine how much nearer the galleries come to a training photo
    than the person's other photos do, one margin a record; a photocopier's is positive.

    Of every image of the gallery, and of set C, the nearest of set B counts.
    """
    from pyiqa.archs.ssim_arch import SSIM  # takes seconds to import

    embeddings, ssim = Embeddings(), SSIM()
    margins: dict[str, list[float]] = {"SSIM": [], "SFace": []}
    for record in found:
        sets = photos(record, output_dir)
        gallery = pngs(folder_of(output_dir, "gallery", record["digests"]["gallery_unprotected"]))
        faces = embeddings(sets["B"])

        def nearest_ssim(image: Tensor, trained: Tensor = sets["B"]) -> float:
            return float(ssim(image.expand_as(trained), trained).max())

        def nearest_face(face: Tensor | None, trained: list = faces) -> float | None:
            pairs = [(face, other) for other in trained if face is not None and other is not None]
            return max((float(cosine_similarity(*pair, dim=0)) for pair in pairs), default=None)

        margins["SSIM"].append(
            fmean(map(nearest_ssim, gallery)) - fmean(map(nearest_ssim, sets["C"]))
        )
        alike = [
            fmean(s for face in embeddings(images) if (s := nearest_face(face)) is not None)
            for images in (gallery, sets["C"])
        ]
        margins["SFace"].append(alike[0] - alike[1])
    return margins


def followed_prompts(found: Sequence[Mapping], output_dir: Path) -> dict[str, list[float | None]]:
    """Return for each of PROMPTS the share of images that follow it, one a record; None for people
    who wear what is asked for anyway.
    """
    reader = trained_reader(output_dir / "reader.pt")
    shares: dict[str, list[float | None]] = {prompt: [] for prompt in PROMPTS}
    for record in found:
        digest = record["digests"]["gallery_unprotected"]
        folders = sorted(
            p for p in folder_of(output_dir, "gallery", digest).iterdir() if p.is_dir()
        )
        who = person(int(record["identity"]))
        wears = {"glasses": who.glasses != "none", "hat": who.hat != "none"}
        for (prompt, (attribute, value)), folder in zip(ASKED.items(), folders, strict=True):
            seen = reader.read(pngs(folder))
            share = fmean(row[attribute] == value for row in seen)
            shares[prompt].append(None if wears.get(attribute) else share)
    return shares


def protected_similarity(found: Sequence[Mapping], output_dir: Path) -> list[float]:
    """Return how much of the clean photos' SFace similarity to set A the protected photos keep,
    one share a record; a photo without a face counts as 0.
    """
    embeddings, kept = Embeddings(), []
    for record in found:
        sets = photos(record, output_dir)
        reference = reference_embedding([e for e in embeddings(sets["A"]) if e is not None])
        protected = pngs(folder_of(output_dir, "protect", record["digests"]["protected"]))
        alike = [
            fmean(
                0.0 if face is None else float(cosine_similarity(face, reference, dim=0))
                for face in embeddings(images)
            )
            for images in (protected, sets["B"])
        ]
        kept.append(alike[0] / alike[1])
    return kept
