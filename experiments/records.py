"""One JSON file per identity and configuration: what was run, where, and how it scored.

`python -m experiments.records import FILE.csv ...` makes records of scores that others measured.
"""

import json
import math
import reprlib
from collections.abc import Mapping
from pathlib import Path

from experiments.disk import atomic_write

SCHEMA_VERSION = 1

# Kinds of values; each of them may also carry "?", which allows null.
KINDS = {
    "text": lambda value: isinstance(value, str),
    "count": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "fraction": lambda value: KINDS["number"](value) and 0 <= value <= 1,
    "cosine": lambda value: KINDS["number"](value) and -1 <= value <= 1,
    "mapping": lambda value: isinstance(value, Mapping),
    "rows": lambda value: (
        isinstance(value, list) and all(isinstance(row, Mapping) for row in value)
    ),
}
SCORES = {
    "ism": "cosine?",
    "ism_failures_as_0": "cosine",
    "fdfr": "fraction",
    "identity_retention": "number?",
    "brisque": "number?",
    "ser_fiq": "number?",
    "prompts": "rows",
    "images": "rows",
}
REQUIRED = {
    "schema_version": "count",
    "dataset": "text",
    "identity": "text",
    "attack": "text",
    "eps": "number",
    "loss": "text",
    "timestep_policy": "text",
    "surrogate_model": "text",
    "countermeasure": "text",
    "clean_photos": "count",
    "adversary": "text",
    "customizer": "text",
    "seed": "count",
    "command": "text",
    "created_at": "text",
    "versions": "mapping",
    "machine": "mapping",
    "config": "mapping",
    "digests": "mapping",
    "seconds": {"protect": "number?", "customize": "number?", "evaluate": "number?"},
    "peak_memory_bytes": "mapping",
    "scorer": {"backbone": "text"},
    "scores": {"protected": SCORES, "unprotected": SCORES},
    "perceptibility": {"linf": "number", "psnr": "number?", "ssim": "number?", "images": "rows"},
}
# A record of scores that others measured, marked by the key `imported`. It has any of the scores.
IMPORTED_SCORES = {
    **{key: kind for key, kind in SCORES.items() if kind != "rows"},
    "ser_fiq_raw": "number",
    "ser_fiq_failures_as_0": "number",
}
IMPORTED_PERCEPTIBILITY = dict.fromkeys(("linf", "psnr", "ssim", "lpips"), "number")
IMPORTED = {
    "schema_version": "count",
    "imported": {"source": "text", "file": "text", "line": "count"},
    "dataset": "text",
    "identity": "text",
    "attack": "text",
    "eps": "number",
    "surrogate_model": "text",
    "base_model": "text",
    "countermeasure": "text",
    "clean_photos": "count",
    "adversary": "text",
    "customizer": "text",
    "seed": "count",
    "scorer": {"backbone": "text"},
    "scores": {"protected": "mapping"},
    "perceptibility": "mapping",
}
BESIDE_ISM = ("fdfr", "ism_failures_as_0")


class RecordError(ValueError):
    """A record is not as REQUIRED says; the message names the file and the key."""


def write(record: Mapping, folder: Path, name: str) -> Path:
    """Write `folder/name.json` atomically; numbers keep 6 significant digits, `config` all.

    The order of keys is kept, so equal records are equal files.
    """
    path = Path(folder) / f"{name}.json"
    check(record, path)
    _check_finite(record, path, "")
    return atomic_write(path, as_json(record))


def as_json(record: Mapping) -> str:
    """The text of a record's file."""
    rounded = {key: item if key == "config" else _rounded(item) for key, item in record.items()}
    return _indented(rounded, "") + "\n"


def _indented(value: object, indent: str) -> str:
    """JSON with a line for each entry, where a row of a table and a list of plain values are one:
    a fifth smaller than with a line for every number, and read as fast.
    """
    inner = indent + "  "
    if isinstance(value, Mapping) and value:
        lines = [f"{inner}{_line(k)}: {_indented(v, inner)}" for k, v in value.items()]
        return "{\n" + ",\n".join(lines) + f"\n{indent}}}"
    if isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
        return "[\n" + ",\n".join(inner + _line(item) for item in value) + f"\n{indent}]"
    return _line(value)


def _line(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def read(path: Path) -> dict:
    """The record in a file; raises RecordError if it is not one of this schema version."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        record = json.loads(text, parse_float=_finite, parse_constant=_finite)
    except ValueError as error:
        raise RecordError(f"{path}: not a JSON file ({error}); delete it and run again") from None
    check(record, path)
    return record


def read_all(folder: Path) -> list[dict]:
    """Every record in a folder and the folders in it, sorted by path."""
    if not Path(folder).is_dir():
        raise RecordError(f"{folder}: no such folder of records")
    return [read(path) for path in sorted(Path(folder).rglob("*.json"))]


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is not finite")
    return number


def check(record: object, path: Path) -> None:
    """Raise RecordError, whose message begins with `path`, unless all keys are there and of their
    kind.
    """
    version = record.get("schema_version") if isinstance(record, Mapping) else None
    if version != SCHEMA_VERSION:
        raise RecordError(
            f"{path}: schema_version is {version!r}, expected {SCHEMA_VERSION}; run it again"
        )
    if "imported" in record:
        _check_imported(record, path)
    else:
        _check_keys(record, REQUIRED, path, "")


def _check_imported(record: Mapping, path: Path) -> None:
    _check_keys(record, IMPORTED, path, "")
    scores = record["scores"]["protected"]
    kinds = {"scores.protected": IMPORTED_SCORES, "perceptibility": IMPORTED_PERCEPTIBILITY}
    for (where, known), given in zip(
        kinds.items(), (scores, record["perceptibility"]), strict=True
    ):
        if unknown := set(given) - set(known):
            raise RecordError(
                f"{path}: {where}.{min(unknown)} is no score: expected any of {', '.join(known)}"
            )
        _check_keys(given, {key: known[key] for key in given}, path, f"{where}.")
    if not scores:
        raise RecordError(f"{path}: scores.protected is empty, expected a score")
    if "ism" in scores and (missing := [key for key in BESIDE_ISM if key not in scores]):
        raise RecordError(
            f"{path}: scores.protected.ism stands without {' and '.join(missing)}, which say what "
            "became of images without a face"
        )


def _check_keys(values: Mapping, required: Mapping, path: Path, prefix: str) -> None:
    for key, kind in required.items():
        where = f"{path}: {prefix}{key}"
        if key not in values:
            raise RecordError(f"{where} is missing")
        value = values[key]
        if isinstance(kind, Mapping):
            if not isinstance(value, Mapping):
                raise RecordError(f"{where} is {reprlib.repr(value)}, expected a mapping")
            _check_keys(value, kind, path, f"{prefix}{key}.")
        elif not ((value is None and kind.endswith("?")) or KINDS[kind.rstrip("?")](value)):
            expected = kind.replace("?", " or null")
            raise RecordError(f"{where} is {reprlib.repr(value)}, expected a {expected}")


def _check_finite(value: object, path: Path, where: str) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise RecordError(f"{path}: {where} is {value}, expected a finite number or null")
    if isinstance(value, Mapping):
        for key, item in value.items():
            _check_finite(item, path, f"{where}.{key}".lstrip("."))
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            _check_finite(item, path, f"{where}[{i}]")


def _rounded(value: object) -> object:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return value


if __name__ == "__main__":
    from experiments.records_import import main

    main()
