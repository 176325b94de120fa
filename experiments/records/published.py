"""The committed folder of records: one JSON Lines file for each experiment.

`configurations.jsonl` beside them has each configuration once, by its digest. `images.csv.xz` has
the scores of single images.
"""

import json
import lzma
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

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
    configurations = dict(_configurations(file)) if file.is_file() else {}
    records = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        where = f"{path}: line {number}"
        data = parsed(line, where)
        if isinstance(data, dict) and isinstance(digest := data.get("config"), str):
            if digest not in configurations:
                raise RecordError(f"{where}: configuration {digest} is not in {file}")
            data["config"] = configurations[digest]
        records.append(record_of(data, where))
    return records


def _configurations(file: Path) -> Iterable[tuple[str, dict]]:
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        data = parsed(line, f"{file}: line {number}")
        yield data["digest"], data["config"]


def write_folder(records: Mapping[str, Scored], images: "Any", folder: Path) -> list[Path]:
    """Write all files of the committed folder; return those that hold records.

    `images` is the frame of single images (see `images_of`). Equal records are equal bytes.
    """
    lines: dict[str, list[tuple]] = defaultdict(list)
    configurations: dict[str, dict] = {}
    for record in records.values():
        data = json.loads(as_json(record))
        if isinstance(record, Record):
            digest = digest_of("config", 1, data["config"])
            configurations[digest], data["config"] = data["config"], digest
        data["scores"] = {
            arm: {key: value for key, value in scores.items() if key != "images"}
            for arm, scores in data["scores"].items()
        }
        data["perceptibility"].pop("images", None)
        order = (record.attack, record.method, record.eps, natural(record.identity), record.name)
        lines[_file_of(record)].append((order, json.dumps(data, ensure_ascii=False)))
    written = [
        atomic_write(folder / name, "".join(f"{text}\n" for _, text in sorted(texts)))
        for name, texts in lines.items()
    ]
    for file in set(folder.glob("*.jsonl")) - set(written) - {folder / CONFIGURATIONS}:
        file.unlink()
    text = "".join(
        json.dumps({"digest": digest, "config": config}, ensure_ascii=False) + "\n"
        for digest, config in sorted(configurations.items())
    )
    atomic_write(folder / CONFIGURATIONS, text)
    _write_images(images, folder)
    return written


def _file_of(record: Scored) -> str:
    if isinstance(record, Record):
        return f"{record.experiment or SINGLE}.jsonl"
    return "imported.jsonl"


def images_of(records: Sequence[Record]) -> "Any":
    """Return a frame with a row for each image of each arm of records that hold such rows."""
    import pandas as pd

    rows = [
        (record.name, arm, row["prompt"], index, *(row.get(score) for score in SCORES))
        for record in records
        for arm, scores in (
            ("protected", record.scores.protected),
            ("unprotected", record.scores.unprotected),
        )
        for index, row in enumerate(scores.images)
    ]
    return pd.DataFrame(rows, columns=[*COLUMNS, *SCORES])


def read_images(folder: Path) -> "Any":
    """Return the frame of single images in the committed folder; empty without its file."""
    import pandas as pd

    file = folder / IMAGES
    return pd.read_csv(file) if file.is_file() else images_of([])


def _write_images(images: "Any", folder: Path) -> None:
    order = images.sort_values(["record", "arm", "index"], kind="stable")
    text = order.to_csv(index=False, float_format="%.6g", lineterminator="\n")
    atomic_write(folder / IMAGES, lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME))
