"""Files of records: one JSON file each, in the folders that runs write."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments.records.record import SCHEMA_VERSION, RecordError, Scored, record_of
from experiments.store.disk import atomic_write


def write(record: Scored, folder: Path) -> Path:
    """Write `folder/<name>.json` atomically; equal records are equal files."""
    return atomic_write(Path(folder) / f"{record.name}.json", as_json(record, indent=1))


def as_json(record: Scored, indent: int | None = None) -> str:
    """Return the record's text; numbers keep 6 significant digits, those of `config` all."""
    data = record.model_dump(exclude_unset=True)
    data = {"schema_version": SCHEMA_VERSION} | data
    rounded = {key: item if key == "config" else _rounded(item) for key, item in data.items()}
    try:
        return json.dumps(rounded, ensure_ascii=False, allow_nan=False, indent=indent) + "\n"
    except ValueError as error:
        raise RecordError(f"record {record.name}: a value is not finite ({error})") from None


def _rounded(value: object) -> object:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list | tuple) else value


def read(path: Path) -> Scored:
    """Return the record in a file; raise RecordError if the file holds none."""
    return record_of(parsed(Path(path).read_text(encoding="utf-8"), str(path)), str(path))


def parsed(text: str, where: str) -> object:
    """Return the value of a JSON text; raise RecordError, also for numbers that are not finite."""
    try:
        return json.loads(text, parse_float=_finite, parse_constant=_finite)
    except (ValueError, RecursionError) as error:
        raise RecordError(
            f"{where}: no record, for it is no JSON ({error}); name records, or run it again"
        ) from None


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is not finite")
    return number


def natural(name: str) -> tuple[int, str]:
    """Return the key that sorts "9" before "10"."""
    return (int(name), "") if name.isdecimal() else (10**18, name)


def files_of(paths: Sequence[Path]) -> list[Path]:
    """Return the files of records in `paths`: files, folders of files, output_dirs.

    Raises RecordError for a path without a file.
    """
    files = []
    for path in paths:
        folder = path / "records" if (path / "records").is_dir() else path
        inside = [path] if path.is_file() else sorted(folder.rglob("*.json*"))
        if not inside:
            raise RecordError(f"{path}: no record there; name records or an output_dir")
        files += inside
    return files
