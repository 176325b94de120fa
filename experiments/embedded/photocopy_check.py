"""Whether a victim is a model of the person or a photocopier of the photos."""

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor

from anticustom.images import read_png
from anticustom.portraits import person
from eval.gallery import Scorer
from eval.identity import failures_as_0, similarity
from experiments.embedded.attribute_reader import trained_reader
from experiments.embedded.model_check import Embeddings
from experiments.records.record import Record
from experiments.store.artifacts import MANIFEST, Artifact

# prompt, attribute that it asks for, and the value of the attribute where the prompt is followed
PROMPTED = {
    "a photo of sks person with glasses": ("glasses", "yes"),
    "a photo of sks person wearing a red hat": ("hat", "yes"),
    "a photo of sks person on the beach": ("scene", "beach"),
    "a photo of sks person in a forest": ("scene", "forest"),
}
PROMPTS = tuple(PROMPTED)


def artifacts(output_dir: Path, stage: str) -> list[Artifact]:
    """Return the finished artifacts of a stage."""
    manifests = sorted((output_dir / "store" / stage).glob(f"*/*/{MANIFEST}"))
    return [Artifact(file.parent, json.loads(file.read_text())) for file in manifests]


def folder_of(output_dir: Path, stage: str, digest: str) -> Path:
    """Return the folder of the artifact with this digest; raise ValueError if there is none."""
    for artifact in artifacts(output_dir, stage):
        if artifact.digest == digest:
            return artifact.path
    raise ValueError(f"{output_dir}/store/{stage} has no artifact {digest}: run the check again")


def folder_of_photos(record: Record, output_dir: Path) -> Path:
    """Return the folder of a record's clean sets of photos; raise ValueError if there is none."""
    for artifact in artifacts(output_dir, "photos"):
        if artifact.manifest["inputs"] == record.digests["photos"]:
            return artifact.path
    raise ValueError(
        f"{output_dir}/store/photos lacks those of {record.identity}: run the check again"
    )


def pngs(folder: Path) -> list[Path]:
    """Return the images in a folder and in its folders, in the order of their names."""
    return sorted(folder.rglob("*.png"))


def images(folder: Path) -> Tensor:
    """Return the images (n, 3, h, w) in a folder and in its folders."""
    return torch.stack([read_png(file) for file in pngs(folder)])


def closeness(records: Sequence[Record], output_dir: Path) -> dict[str, list[float]]:
    """Return for SSIM and for SFace's cosine how much nearer the galleries come to a training photo
    than the person's other photos do.

    Each record has one margin; a photocopier's is positive. For every image of the gallery and of
    set C, its nearest image of set B counts. For SFace, images without a face do not count.
    """
    from pyiqa.archs.ssim_arch import SSIM  # takes seconds to import

    embeddings, ssim = Embeddings(), SSIM()

    def ssim_to_nearest(pictures: Tensor, trained: Tensor) -> float:
        return fmean(float(ssim(picture.expand_as(trained), trained).max()) for picture in pictures)

    def cosine_to_nearest(pictures: Tensor, trained: Tensor) -> float:
        faces = [face for face in embeddings(pictures) if face is not None]
        others = [face for face in embeddings(trained) if face is not None]
        return fmean(max(similarity(face, other) for other in others) for face in faces)

    margins: dict[str, list[float]] = {"SSIM": [], "SFace": []}
    for record in records:
        clean = folder_of_photos(record, output_dir)
        trained, unseen = images(clean / "set_B"), images(clean / "set_C")
        gallery = images(folder_of(output_dir, "gallery", record.digests["gallery_unprotected"]))
        for name, nearest in (("SSIM", ssim_to_nearest), ("SFace", cosine_to_nearest)):
            margins[name].append(nearest(gallery, trained) - nearest(unseen, trained))
    return margins


def followed_prompts(records: Sequence[Record], output_dir: Path) -> dict[str, list[float | None]]:
    """Return for each of PROMPTS the share of images that follow it, in every record.

    The share is None for people who always wear the thing that the prompt asks for.
    """
    reader = trained_reader(output_dir / "reader.pt")
    shares: dict[str, list[float | None]] = {prompt: [] for prompt in PROMPTS}
    for record in records:
        gallery = folder_of(output_dir, "gallery", record.digests["gallery_unprotected"])
        folders = sorted(path for path in gallery.iterdir() if path.is_dir())
        who = person(int(record.identity))
        wears = {"glasses": who.glasses != "none", "hat": who.hat != "none"}
        for (prompt, (attribute, value)), folder in zip(PROMPTED.items(), folders, strict=True):
            share = fmean(row[attribute] == value for row in reader.read(images(folder)))
            shares[prompt].append(None if wears.get(attribute) else share)
    return shares


def protected_similarity(records: Sequence[Record], output_dir: Path) -> list[float]:
    """Return for each record how much of the SFace similarity between set B and set A is left when
    set B is protected, 1 for all.

    A photo without a face has similarity 0.
    """
    scorer, shares = Scorer(backbone="sface", brisque=False, ser_fiq=False), []
    for record in records:
        clean = folder_of_photos(record, output_dir)
        protected = folder_of(output_dir, "protect", record.digests["protected"])
        kept, whole = (
            failures_as_0(scorer.similarity_of(pngs(folder), pngs(clean / "set_A")))
            for folder in (protected, clean / "set_B")
        )
        shares.append(kept / whole)
    return shares
