"""Publishes records: `python -m experiments.leaderboard.publish [PATH ...]`.

A PATH is a record, a folder of records, or an output_dir that has `records`.
The records join the committed folder, and no path of this machine goes with them.
A method at the budget of its strip, and without one yet, gains a strip of small pictures.
Only pictures of embedded people are published.
"""

import argparse
import contextlib
import functools
import io
import json
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from experiments.records.files import files_of, natural
from experiments.records.published import (
    RESULTS,
    images_of,
    read_all,
    read_folder,
    read_images,
    write_folder,
)
from experiments.records.record import Record, RecordError, Scored
from experiments.store.artifacts import MANIFEST, Artifact, safe_name, verified
from experiments.store.disk import StoreError, atomic_write

INVENTED_PEOPLE = "Portraits"  # the class that draws them: a data set may have any name
STRIP_EPS = 8
TILE, GAP, GROUP_GAP = 72, 2, 10  # pixels
PHOTOS, SAMPLES = 2, 4  # pictures of each group
QUALITY = 80
PATHS = ("root", "path", "target")  # settings that may hold a path of this machine
HIDDEN = "PATH"


def publish(files: Iterable[Path], results: Path, replace: bool = False) -> tuple[int, int]:
    """Add records to the folders `records` and `strips` of `results`; return how many of each.

    All records are checked before the first file is written. A record of the same row, identity
    and seed as a committed one replaces it with `replace`; without, RecordError is raised.
    """
    paths = {path.stem: path for path in files}
    chosen = read_all(paths.values())  # a file listed twice is read once
    committed = read_folder(results / "records")
    replaced = _twins(chosen, committed)
    if replaced and not replace:
        name, twin = next(iter(replaced.items()))
        raise RecordError(
            f"{paths.get(name, name)}: the committed {twin} is of {_place_in_words(chosen[name])}: "
            "--replace puts this one in its place; or leave this one out"
        )
    for name, twin in _twins(chosen, chosen).items():
        raise RecordError(
            f"{paths.get(name, name)}: {paths.get(twin, twin)} is of "
            f"{_place_in_words(chosen[name])}; leave one out"
        )
    committed = {k: record for k, record in committed.items() if k not in replaced.values()}
    to_show = [name for name in _to_show(chosen, committed, results) if name in paths]
    strips = {name: strip_of(chosen[name], paths[name]) for name in to_show}
    strips = {name: strip for name, strip in strips.items() if strip}
    records = committed | {name: without_paths(record) for name, record in chosen.items()}
    fresh = images_of([record for record in chosen.values() if isinstance(record, Record)])
    images = read_images(results / "records")
    images = images[images.record.isin(records.keys() - set(fresh.record))]
    images = pd.concat([images, fresh]) if len(images) else fresh
    write_folder(records, images, results / "records")
    for twin in replaced.values():
        (results / "strips" / f"{twin}.jpg").unlink(missing_ok=True)
    for name, strip in strips.items():
        atomic_write(results / "strips" / f"{name}.jpg", strip)
    return len(chosen), len(strips)


def _twins(records: Mapping[str, Scored], others: Mapping[str, Scored]) -> dict[str, str]:
    """Return the names of records, each with another one of its row, identity and seed."""
    places = {_place(record): name for name, record in others.items()}
    twins = {name: places.get(_place(record), name) for name, record in records.items()}
    return {name: twin for name, twin in twins.items() if twin != name}


def _place(record: Scored) -> tuple:
    return record.row_key, record.identity, record.seed


def _place_in_words(record: Scored) -> str:
    return f"the same row, identity ({record.identity}) and seed ({record.seed})"


def without_paths(record: Scored) -> Scored:
    """Return the record without the paths of the machine that it was made on."""
    if not isinstance(record, Record):
        return record
    config = _without_paths(record.config) | {"output_dir": "outputs"}
    words = shlex.split(record.command)
    if len(words) > 1 and Path(words[1]).name == "run.py":
        words[1] = "run.py"
    cleaned = []
    for word in words:
        key, equals, value = word.partition("=")
        if key.lstrip("+") == "output_dir":
            continue
        may_be_path = equals and key.rpartition(".")[2] in PATHS
        is_shown = json.dumps(value) in json.dumps(config)
        cleaned.append(f"{key}={HIDDEN}" if may_be_path and not is_shown else word)
    return record.model_copy(update={"config": config, "command": shlex.join(cleaned)})


def _without_paths(node: Mapping) -> dict[str, Any]:
    cleaned = {}
    for key, value in node.items():
        if isinstance(value, Mapping):
            cleaned[key] = _without_paths(value)
        else:
            cleaned[key] = HIDDEN if key in PATHS and _is_path(value, node) else value
    return cleaned


def _is_path(value: object, node: Mapping) -> bool:
    """Whether a setting is a path: a repository of the hub has a revision beside its name."""
    return isinstance(value, str) and bool(set("/\\~") & set(value)) and not node.get("revision")


def _to_show(
    records: Mapping[str, Scored], committed: Mapping[str, Scored], results: Path
) -> list[str]:
    """Return for each method without a strip the record of its first identity that may have one.

    A strip shows a method as it is chosen, at one budget, under the adversary that it assumes.
    """
    strips = {path.stem for path in (results / "strips").glob("*.jpg")}
    shown = {record.method for name, record in committed.items() if name in strips}
    first: dict[str, str] = {}
    for name, record in sorted(
        records.items(), key=lambda item: (natural(item[1].identity), item[0])
    ):
        if record.method not in shown and _may_be_shown(record):
            first.setdefault(record.method, name)
    return list(first.values())


def _may_be_shown(record: Scored) -> bool:
    plain = (record.method, record.eps, record.details) == (record.attack, STRIP_EPS, "")
    untouched = record.countermeasure == "none" and record.adversary == "as_assumed"
    if not (plain and untouched and not record.clean_photos and isinstance(record, Record)):
        return False
    return record.config["dataset"]["_target_"].rpartition(".")[2] == INVENTED_PEOPLE


def strip_of(record: Record, path: Path) -> bytes | None:
    """Return a JPEG of the record's protected photos and of both victims' images.

    The pictures come from the store of the run that wrote `path`; None where they are gone.
    """
    store, digests = path.parent.parent / "store", record.digests
    groups = [
        _tiles(store / "protect", digests.get("protected"), PHOTOS),
        _tiles(store / "gallery", digests.get("gallery_unprotected"), SAMPLES),
        _tiles(store / "gallery", digests.get("gallery_protected"), SAMPLES),
    ]
    if not all(groups):
        return None
    content = io.BytesIO()
    strip = _side_by_side([_side_by_side(tiles, GAP) for tiles in groups], GROUP_GAP)
    strip.save(content, "JPEG", quality=QUALITY)
    return content.getvalue()


def _side_by_side(images: Sequence[Image.Image], gap: int) -> Image.Image:
    """Return images of one height in a row, with grey gaps of `gap` pixels."""
    starts = [sum(image.width + gap for image in images[:k]) for k in range(len(images) + 1)]
    row = Image.new("RGB", (starts[-1] - gap, TILE), "#808080")
    for image, x in zip(images, starts, strict=False):
        row.paste(image, (x, 0))
    return row


def _tiles(stage: Path, digest: str | None, count: int) -> list[Image.Image]:
    """Return `count` evenly spread pictures of the artifact with this digest, or none."""
    artifact = _artifacts(stage).get(digest)
    artifact = artifact and verified(artifact.path)[0]  # no manifest is believed unseen
    files = [file for file in artifact.files if file.suffix == ".png"] if artifact else []
    count = min(count, len(files))
    tiles = []
    for k in range(count):
        with Image.open(files[k * len(files) // count]) as image:
            tiles.append(image.convert("RGB").resize((TILE, TILE), Image.Resampling.LANCZOS))
    return tiles


@functools.cache  # a store has thousands, and each of many strips looks for three
def _artifacts(stage: Path) -> dict[str, Artifact]:
    """Return the finished artifacts of a stage by their digests, without those set aside."""
    artifacts = {}
    for path in sorted(stage.glob(f"*/[!.]*/{MANIFEST}")):
        # a manifest may have been damaged since, and no run has seen it yet
        with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
            artifact = Artifact(path.parent, json.loads(path.read_text()))
            if path.parent.name == safe_name(artifact.manifest["unit"]):
                artifacts[artifact.digest] = artifact
    return artifacts


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("paths", nargs="*", type=Path, default=[Path("outputs/records")])
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder to publish into")
    parser.add_argument(
        "--replace", action="store_true", help="put records in the place of committed ones"
    )
    options = parser.parse_args(arguments)
    try:
        records, strips = publish(files_of(options.paths), options.results, options.replace)
    except (RecordError, StoreError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"{records} records and {strips} strips of pictures -> {options.results}")


if __name__ == "__main__":
    main()
