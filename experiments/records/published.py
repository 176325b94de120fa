"""The committed folder of records: one JSON Lines file for each experiment.

`configurations.jsonl` beside them has each configuration once, by its digest. `images.csv.xz` has
the scores of single images.
"""

import json
import lzma
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.records.files import as_json, natural, parsed, read
from experiments.records.record import Record, RecordError, Scored, record_of
from experiments.store.artifacts import digest_of
from experiments.store.disk import atomic_write

RESULTS = Path(__file__).parents[1] / "results"
RECORDS = RESULTS / "records"
CONFIGURATIONS = "configurations.jsonl"
IMAGES = "images.csv.xz"
SINGLE = "single_runs"  # of records that belong to no experiment
COLUMNS = ("record", "arm", "prompt", "index")
SCORES = ("face_probability", "similarity", "ser_fiq_raw", "brisque")


def read_all(paths: Iterable[Path]) -> dict[str, Scored]:
    """Return the records in files (.json, .jsonl) by their names.

    Raises RecordError for a file that is no record and for two records of one name.
    """
    records: dict[str, Scored] = {}
    for path in paths:
        if path.name == CONFIGURATIONS or path.suffix not in (".json", ".jsonl"):
            continue
        for record in _lines(path) if path.suffix == ".jsonl" else [read(path)]:
            if record.name in records:
                raise RecordError(f"{path}: a second record of the name {record.name}; delete one")
            records[record.name] = record
    return records


def read_folder(folder: Path) -> dict[str, Scored]:
    """Return the records of the committed folder by their names."""
    return read_all(sorted(folder.glob("*.jsonl")))


def _lines(path: Path) -> list[Scored]:
    file = path.with_name(CONFIGURATIONS)
    entries = [data for _, data in _parsed_lines(file)] if file.is_file() else []
    configurations = {entry["digest"]: entry["config"] for entry in entries}
    records = []
    for where, data in _parsed_lines(path):
        if isinstance(data, dict) and isinstance(digest := data.get("config"), str):
            if digest not in configurations:
                raise RecordError(f"{where}: configuration {digest} is not in {file}")
            data["config"] = configurations[digest]
        records.append(record_of(data, where))
    return records


def _parsed_lines(file: Path) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        where = f"{file}: line {number}"
        yield where, parsed(line, where)


def write_folder(records: Mapping[str, Scored], images: pd.DataFrame, folder: Path) -> None:
    """Write all files of the committed folder.

    `images` is the frame of single images (see `images_of`). Equal records are equal bytes.
    """
    lines: dict[Path, list[tuple]] = defaultdict(list)
    configurations: dict[str, dict] = {}
    for record in records.values():
        data = json.loads(as_json(record))
        if isinstance(record, Record):
            digest = digest_of("config", 1, data["config"])
            configurations[digest], data["config"] = data["config"], digest
        for scores in (*data["scores"].values(), data["perceptibility"]):
            if scores:
                scores.pop("images", None)
        order = (record.attack, record.method, record.eps, natural(record.identity), record.name)
        lines[folder / _file_of(record)].append((order, data))
    lines[folder / CONFIGURATIONS] = [
        (digest, {"digest": digest, "config": config}) for digest, config in configurations.items()
    ]
    for file, entries in lines.items():
        texts = [
            json.dumps(data, ensure_ascii=False) for _, data in sorted(entries, key=itemgetter(0))
        ]
        atomic_write(file, "".join(f"{text}\n" for text in texts))
    for file in set(folder.glob("*.jsonl")) - set(lines):
        file.unlink()
    order = images.sort_values(["record", "arm", "index"], kind="stable")
    text = order.to_csv(index=False, float_format="%.6g", lineterminator="\n")
    atomic_write(folder / IMAGES, lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME))


def _file_of(record: Scored) -> str:
    if isinstance(record, Record):
        return f"{record.experiment or SINGLE}.jsonl"
    return "imported.jsonl"


def images_of(records: Sequence[Record]) -> pd.DataFrame:
    """Return a frame with a row for each image of each arm of records that hold such rows."""
    rows = [
        (record.name, arm, row["prompt"], index, *(row.get(score) for score in SCORES))
        for record in records
        for arm, scores in record.scores
        if scores
        for index, row in enumerate(scores.images)
    ]
    return pd.DataFrame(rows, columns=[*COLUMNS, *SCORES])


def read_images(folder: Path) -> pd.DataFrame:
    """Return the frame of single images in the committed folder; empty without its file."""
    file = folder / IMAGES
    return pd.read_csv(file) if file.is_file() else images_of([])
