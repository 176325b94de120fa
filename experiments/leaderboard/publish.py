"""Copies records into the committed folder: `python -m experiments.leaderboard.publish [PATH ...]`.

A PATH is a record, a folder of records, or an output_dir that has `records`. Beside a record of
embedded people goes a strip of small pictures, one strip for each configuration; pictures of
anybody else are never copied.
"""

import argparse
import contextlib
import functools
import io
import json
import shlex
import sys
from collections.abc import Mapping, Sequence, Set
from pathlib import Path

from PIL import Image

from experiments.leaderboard.board import RECORDS, read
from experiments.leaderboard.samples import twins
from experiments.records import record as records
from experiments.records.naming import Configuration, configurations
from experiments.records.record import files_of, natural
from experiments.store.artifacts import MANIFEST, Artifact, safe_name
from experiments.store.disk import StoreError, atomic_write

INVENTED_PEOPLE = "anticustom.identities.Portraits"
TILE, GAP, GROUP_GAP = 72, 2, 10  # pixels
PHOTOS, SAMPLES = 2, 4  # pictures of each group
QUALITY = 80


def publish(files: Sequence[Path], target: Path) -> list[Path]:
    """Copy records and what strips they need to `target`; return the files written.

    Everything is read and validated before the first file is written. Raises RecordError for a
    record that the leaderboard would refuse beside those that are there.
    """
    chosen = {path.stem: (path, without_paths(records.read(path))) for path in files}
    committed, strips = read(target)
    together = committed | {name: record for name, (_, record) in chosen.items()}
    configured = configurations(together)
    for pair in twins(together, configured):
        old, new = sorted(pair, key=lambda name: name in chosen)
        files_of_pair = [chosen[k][0] if k in chosen else target / f"{k}.json" for k in (old, new)]
        raise records.RecordError(_twin(*files_of_pair, together[new]))
    shown = {configured[name] for name in strips}
    to_show = _to_show({name: record for name, (_, record) in chosen.items()}, configured, shown)
    made = {name: strip_of(*chosen[name]) for name in to_show}
    written = [records.write(record, target, name) for name, (_, record) in chosen.items()]
    return written + [
        atomic_write(target / f"{k}.jpg", strip) for k, strip in made.items() if strip
    ]


def without_paths(record: Mapping) -> dict:
    """The record with a command that names run.py, wherever it lay."""
    words = shlex.split(record.get("command", ""))
    if len(words) > 1 and Path(words[1]).name == "run.py":
        words[1] = "run.py"
        return {**record, "command": shlex.join(words)}
    return dict(record)


def _twin(old: Path, new: Path, record: Mapping) -> str:
    return (
        f"{new}: {old} is of the same configuration, identity ({record['identity']}) and seed "
        f"({record['seed']}); delete that one if this replaces it, or leave this one out"
    )


def _to_show(
    found: Mapping[str, Mapping],
    configured: Mapping[str, Configuration],
    shown: Set[Configuration],
) -> list[str]:
    """For each configuration that has no strip yet, the record of its first identity that may."""
    done = set(shown)
    order = sorted(found, key=lambda name: (natural(found[name]["identity"]), name))
    wanted = []
    for name in order:
        if configured[name] not in done and may_be_shown(found[name]):
            done.add(configured[name])
            wanted.append(name)
    return wanted


def may_be_shown(record: Mapping) -> bool:
    """Whether the record's people are the embedded ones, by the class that drew them: a data set
    may have any name.
    """
    dataset = record.get("config", {}).get("dataset", {})
    return "imported" not in record and dataset.get("_target_") == INVENTED_PEOPLE


def strip_of(path: Path, record: Mapping) -> bytes | None:
    """A JPEG of the record's protected photos and both victims' images, from the store of the run
    that wrote `path`; None where the store has them no longer.
    """
    if not may_be_shown(record):
        raise ValueError(f"{path}: pictures of dataset={record['dataset']} are not published")
    store, digests = path.parent.parent / "store", record["digests"]
    groups = [
        _pictures(store / "protect", digests.get("protected"), PHOTOS),
        _pictures(store / "gallery", digests.get("gallery_unprotected"), SAMPLES),
        _pictures(store / "gallery", digests.get("gallery_protected"), SAMPLES),
    ]
    if not all(groups):
        return None
    tiles = sum(len(group) for group in groups)
    width = tiles * (TILE + GAP) - GAP + (len(groups) - 1) * (GROUP_GAP - GAP)
    strip = Image.new("RGB", (width, TILE), "#808080")
    x = 0
    for group in groups:
        for file in group:
            with Image.open(file) as image:
                tile = image.convert("RGB").resize((TILE, TILE), Image.Resampling.LANCZOS)
            strip.paste(tile, (x, 0))
            x += TILE + GAP
        x += GROUP_GAP - GAP
    content = io.BytesIO()
    strip.save(content, "JPEG", quality=QUALITY)
    return content.getvalue()


def _pictures(stage: Path, digest: str | None, count: int) -> list[Path]:
    """`count` evenly spread PNG files of the artifact with this digest, or none."""
    artifact = _artifacts(stage).get(digest)
    files = [file for file in artifact.files if file.suffix == ".png"] if artifact else []
    count = min(count, len(files))
    return [files[i * len(files) // count] for i in range(count)]


@functools.cache  # a store has thousands, and each of many strips looks for three
def _artifacts(stage: Path) -> dict[str, Artifact]:
    """The finished artifacts of a stage by their digest; damaged ones, which the store has set
    aside under other names, are none.
    """
    found = []
    for path in sorted(stage.glob(f"*/[!.]*/{MANIFEST}")):
        # damaged since, which no run has seen yet
        with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
            artifact = Artifact(path.parent, json.loads(path.read_text()))
            found.append((artifact.digest, artifact, safe_name(artifact.manifest["unit"])))
    return {digest: artifact for digest, artifact, name in found if artifact.path.name == name}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("paths", nargs="*", type=Path, default=[Path("outputs/records")])
    parser.add_argument("--target", type=Path, default=RECORDS)
    asked = parser.parse_args(arguments)
    try:
        written = publish(files_of(asked.paths), asked.target)
    except (records.RecordError, StoreError, OSError) as error:
        sys.exit(f"error: {error}")
    strips = sum(path.suffix == ".jpg" for path in written)
    print(f"{len(written) - strips} records and {strips} strips of pictures -> {asked.target}")


if __name__ == "__main__":
    main()
