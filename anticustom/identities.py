"""Identities, one person each, and the readers of data sets.

A reader has two methods: `names()` lists the identities that its setting `identities` selects,
`read(name, size)` reads one. That setting is an integer N for the first N, or a list of names.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from anticustom.images import from_8bit, read_photo, to_8bit
from anticustom.portraits import TRAINING_IDENTITIES_FROM, person, render, shot

SETS = ("set_A", "set_B", "set_C")
PHOTO_SUFFIXES = (".jpeg", ".jpg", ".jfif", ".png", ".webp")
OTHER_SUFFIXES = (  # photos as well: they are refused, not skipped, lest they stay unprotected
    *(".avif", ".bmp", ".gif", ".heic", ".heif", ".jp2", ".jxl", ".psd", ".tif", ".tiff"),
    *(".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".raf", ".raw", ".rw2"),
)

Selection = int | str | Sequence[int | str]


class BadDataset(ValueError):
    """Photos or identities that are not as asked: one line with what, where and how to mend it."""


@dataclass(frozen=True, eq=False)
class PhotoSet:
    """Photos of one person: `images` (n, 3, size, size) and their file names, sorted."""

    names: tuple[str, ...]
    images: Tensor

    @property
    def digest(self) -> str:
        """Return the SHA-256 of names, shape and 8-bit pixels."""
        content = hashlib.sha256(json.dumps([self.names, self.images.shape]).encode())
        content.update(to_8bit(self.images).cpu().numpy().tobytes())
        return content.hexdigest()


@dataclass(frozen=True, eq=False)
class Identity:
    """One person: a clean reference, the photos to protect, and more clean ones (or none)."""

    name: str
    set_A: PhotoSet
    set_B: PhotoSet
    set_C: PhotoSet


def with_clean_photos(photos: PhotoSet, clean: PhotoSet, count: int) -> PhotoSet:
    """Return `photos` with the first `count` replaced by the first of `clean`, under their names:
    what an adversary has who found unprotected photos too (Anti-DreamBooth's uncontrolled setting).

    Raises BadDataset if either set has fewer photos.
    """
    if count > min(len(photos.names), len(clean.names)):
        raise BadDataset(
            f"clean_photos={count}: there are {len(photos.names)} photos in set B to replace and "
            f"{len(clean.names)} in set C to take"
        )
    return PhotoSet(photos.names, torch.cat([clean.images[:count], photos.images[count:]]))


def select(available: Sequence[str], identities: Selection) -> list[str]:
    """Return the first N of `available` for an integer N, or the names listed, in their order.

    A single name is a list of one. Raises BadDataset for one that is not there or listed twice.
    """
    chosen = _chosen(identities)
    if isinstance(chosen, int):
        if chosen > len(available):
            raise BadDataset(
                f"dataset.identities={chosen} means the first {chosen}, but {_some(available)}; "
                f"for the one called {chosen} set dataset.identities=[{chosen}]"
            )
        return list(available[:chosen])
    for name in chosen:
        if name not in available:
            raise BadDataset(f"dataset.identities: there is no {name!r}; {_some(available)}")
    return chosen


@dataclass(frozen=True, kw_only=True)
class Portraits:
    """The embedded data set: procedural people, called 0 to 999999, with up to 4 photos a set."""

    identities: Selection = 1
    photos_per_set: int = 4

    def __post_init__(self) -> None:
        _check_photos_per_set(self.photos_per_set)
        if self.photos_per_set > 4:
            raise BadDataset(f"dataset.photos_per_set={self.photos_per_set}: a portrait set has 4")

    def names(self) -> list[str]:
        chosen = _chosen(self.identities)
        if isinstance(chosen, int):
            last = min(chosen, TRAINING_IDENTITIES_FROM + 1)
            chosen = [str(number) for number in range(last)]
        for name in chosen:
            is_number = name.isdecimal() and str(int(name)) == name
            if not is_number or int(name) >= TRAINING_IDENTITIES_FROM:
                raise BadDataset(
                    f"dataset.identities: there is no portrait of {name!r}; "
                    f"list numbers from 0 to {TRAINING_IDENTITIES_FROM - 1}"
                )
        return chosen

    def read(self, name: str, size: int) -> Identity:
        def photo_set(letter: str, first: int) -> PhotoSet:
            numbers = range(self.photos_per_set)
            shots = [shot(int(name), first + number) for number in numbers]
            images = render([person(int(name))] * len(shots), shots, size)
            return PhotoSet(tuple(f"{letter}{i}.png" for i in numbers), from_8bit(to_8bit(images)))

        return Identity(name, photo_set("A", 0), photo_set("B", 4), photo_set("C", 8))


@dataclass(frozen=True, kw_only=True)
class PapersTree:
    """The papers' splits: photos in `<root>/<identity>/set_A`, `set_B` and `set_C`.

    The first `photos_per_set` of each set by name are read. `hint` says where to get the data.
    """

    root: str | Path
    hint: str
    identities: Selection = 1
    photos_per_set: int = 4

    def __post_init__(self) -> None:
        _check_photos_per_set(self.photos_per_set)

    def names(self) -> list[str]:
        root = Path(self.root).expanduser()
        folders = [f for f in _folders(root) if any((f / set_name).is_dir() for set_name in SETS)]
        if not folders:
            lack = "holds no" if root.is_dir() else "is not there; it should hold"
            raise BadDataset(
                f"dataset.root={str(root)!r} {lack} <identity>/set_A, <identity>/set_B and "
                f"<identity>/set_C with photos: {self.hint}"
            )
        return select([folder.name for folder in folders], self.identities)

    def read(self, name: str, size: int) -> Identity:
        folder = Path(self.root).expanduser() / name
        return Identity(name, *(self._read_set(folder / set_name, size) for set_name in SETS))

    def _read_set(self, folder: Path, size: int) -> PhotoSet:
        photos = _photos(folder)
        if len(photos) < self.photos_per_set:
            raise BadDataset(
                f"{str(folder)!r} holds {len(photos)} photos instead of {self.photos_per_set}: "
                "add some, choose another identity, or lower dataset.photos_per_set"
            )
        return _read(photos[: self.photos_per_set], size)


@dataclass(frozen=True, kw_only=True)
class Folder:
    """Your own photos, of any size and orientation: a folder of one person, or of a folder each.

    Of a person's photos, sorted by name, the first `photos_per_set` are set A: they stay clean, and
    attacks learn the face from them. If there are three times as many or more, the last
    `photos_per_set` are set C, held out to score against. All others are set B.

    `protect_all` is for an album that is to be published as a whole: all photos are set B, the
    first of them are set A as well, and set C is empty.

    A person is called after the folder; `name` replaces that where there is but one person. Photos
    directly in `root` make it one person's folder, and what its sub-folders hold is left alone.
    """

    root: str | Path
    name: str | None = None
    identities: Selection = 1
    photos_per_set: int = 4
    protect_all: bool = False

    def __post_init__(self) -> None:
        _check_photos_per_set(self.photos_per_set)
        name = self.name
        if name is not None and (Path(str(name)).name != name or name == ".."):
            raise BadDataset(f"dataset.name={name!r} cannot name a folder: use letters")

    def names(self) -> list[str]:
        return select(list(self._people()), self.identities)

    def read(self, name: str, size: int) -> Identity:
        folder, n = self._people()[name], self.photos_per_set
        photos = _photos(folder)
        least = n if self.protect_all else 2 * n
        if len(photos) < least:
            raise BadDataset(
                f"{str(folder)!r} holds {len(photos)} photos and should hold {least} or more: "
                "add some, or lower dataset.photos_per_set"
            )
        end = len(photos)
        if not self.protect_all and end >= 3 * n:
            end -= n
        return Identity(
            name,
            set_A=_read(photos[:n], size),
            set_B=_read(photos if self.protect_all else photos[n:end], size),
            set_C=_read(photos[end:], size),
        )

    def _people(self) -> dict[str, Path]:
        root = Path(self.root).expanduser().resolve()
        where = f"dataset.root={str(root)!r}"
        if not root.is_dir():
            raise BadDataset(f"{where} is no folder: set it to the folder of your photos")
        if _images(root):
            return {self.name or root.name: root}
        people = {folder.name: folder for folder in _folders(root) if _images(folder)}
        if not people:
            raise BadDataset(f"{where} holds no photos: put JPEG or PNG files there")
        if self.name is not None:
            raise BadDataset(
                f"dataset.name={self.name!r} is for one person, but {where} holds a folder for "
                "each: leave the name out, and choose with dataset.identities"
            )
        return people


def _chosen(identities: Selection) -> int | list[str]:
    """Return a positive number, or one or more different names."""
    if isinstance(identities, int) and not isinstance(identities, bool) and identities > 0:
        return identities
    listed = [identities] if isinstance(identities, str) else identities
    if not isinstance(listed, Sequence) or not listed:
        raise BadDataset(
            f"dataset.identities={identities!r} is neither a number from 1 on nor a list of names: "
            "set 3 for the first three, or [a,b] for those two"
        )
    if any(isinstance(item, bool) or not isinstance(item, int | str) for item in listed):
        raise BadDataset(f"dataset.identities={list(listed)}: list only names and integers")
    names = [str(item) for item in listed]
    if len(set(names)) < len(names):
        raise BadDataset(f"dataset.identities={names}: list each once")
    return names


def _some(available: Sequence[str]) -> str:
    more = ", ..." if len(available) > 5 else ""
    return f"available: {len(available)} ({', '.join(available[:5])}{more})"


def _check_photos_per_set(value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise BadDataset(f"dataset.photos_per_set={value!r} is no number from 1 on: set 4")


def _folders(root: Path) -> list[Path]:
    """Return the visible folders, sorted by name."""
    if not root.is_dir():
        return []
    return sorted(path for path in root.iterdir() if path.is_dir() and path.name[0] != ".")


def _images(folder: Path) -> list[Path]:
    """Return the visible files whose suffix says that they are images, sorted by name."""
    if not folder.is_dir():
        return []
    suffixes = PHOTO_SUFFIXES + OTHER_SUFFIXES
    files = (path for path in folder.iterdir() if path.name[0] != "." and not path.is_dir())
    return sorted(path for path in files if path.suffix.lower() in suffixes)


def _photos(folder: Path) -> list[Path]:
    """Return the photos in a folder, sorted by name; refuse formats that are not read."""
    images = _images(folder)
    for path in images:
        if path.suffix.lower() in OTHER_SUFFIXES:
            raise BadDataset(f"{str(path)!r} cannot be read: convert it to JPEG or PNG")
    return images


def _read(photos: Sequence[Path], size: int) -> PhotoSet:
    images = [read_photo(path, size) for path in photos]
    stacked = torch.stack(images) if images else torch.empty(0, 3, size, size)
    return PhotoSet(tuple(path.name for path in photos), stacked)
