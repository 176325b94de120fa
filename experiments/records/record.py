"""One JSON file per identity and configuration: what was run, where, and how it scored."""

import json
import math
import reprlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from eval.metrics import METRICS
from experiments.store.disk import atomic_write

SCHEMA_VERSION = 1


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _kind_of_range(low: float | None, high: float | None) -> str:
    if low is None:
        return "number"
    return f"number from {low:g}" + (" on" if high is None else f" to {high:g}")


def _within(low: float | None, high: float | None) -> Callable[[object], bool]:
    ends = (-math.inf if low is None else low, math.inf if high is None else high)
    # the last bits of a sum may lie outside; a record is written with 6 digits
    return lambda value: _number(value) and ends[0] - 1e-6 <= value <= ends[1] + 1e-6


RANGES = {key: metric["range"] for key, metric in METRICS.items()}
EPS = (0.0, 255.0)  # grey levels; 0: nothing is protected
# Kinds of values; each of them may also carry "?", which allows null.
KINDS = {
    "text": lambda value: isinstance(value, str),
    # printable: what figures and pages can show
    "name": lambda value: isinstance(value, str) and 0 < len(value) <= 200 and value.isprintable(),
    "count": lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= 0,
    "number": lambda value: _number(value) and abs(value) < 1e300,
    "duration": lambda value: _number(value) and 0 <= value < 1e9,  # seconds
    "mapping": lambda value: isinstance(value, Mapping),
    "rows": lambda value: (
        isinstance(value, list) and all(isinstance(row, Mapping) for row in value)
    ),
    **{_kind_of_range(*ends): _within(*ends) for ends in (EPS, *RANGES.values())},
}
BUDGET = _kind_of_range(*EPS)
ALWAYS = ("fdfr", "ism_failures_as_0", "linf")  # of metrics, what is never null
METRIC_KINDS = {
    key: _kind_of_range(*ends) + ("" if key in ALWAYS else "?") for key, ends in RANGES.items()
}
VISIBILITY = ("linf", "psnr", "ssim", "lpips")  # of the protected photos; all others are of images
IMAGE_SCORES = {key: kind for key, kind in METRIC_KINDS.items() if key not in VISIBILITY}
PERCEPTIBILITY = {key: METRIC_KINDS[key] for key in VISIBILITY}
BESIDE_ISM = ("fdfr", "ism_failures_as_0")
SCORES = {
    **{key: METRIC_KINDS[key] for key in ("ism", *BESIDE_ISM, "identity_retention")},
    **{key: METRIC_KINDS[key] for key in ("brisque", "ser_fiq")},
    "prompts": "rows",
    "images": "rows",
}
# what tells configurations apart
CONFIG = {
    **dict.fromkeys(("attack", "gallery", "class_images"), "mapping"),
    **dict.fromkeys(("countermeasure", "dataset", "metrics"), "mapping"),
    "customizer": {"base_model": {"name": "text"}},
    "precision": "text",
}
REQUIRED = {
    "schema_version": "count",
    **dict.fromkeys(("dataset", "identity", "attack"), "name"),
    "eps": BUDGET,
    **dict.fromkeys(("loss", "timestep_policy", "surrogate_model", "countermeasure"), "name"),
    "clean_photos": "count",
    **dict.fromkeys(("adversary", "customizer"), "name"),
    "seed": "count",
    "command": "text",
    "created_at": "text",
    "versions": "mapping",
    "machine": "mapping",
    "config": CONFIG,
    "digests": {"base_model": "text", "surrogate_model": "text"},
    "seconds": dict.fromkeys(("protect", "customize", "evaluate"), "duration?"),
    "peak_memory_bytes": "mapping",
    "scorer": {"backbone": "name"},
    "scores": {"protected": SCORES, "unprotected": SCORES},
    "perceptibility": {
        **{key: METRIC_KINDS[key] for key in ("linf", "psnr", "ssim")},
        "images": "rows",
    },
}
# the versions of the stages' numbers in records that do not say so: they came before
STAGES = {"photos": 1, "class_images": 1, "protect": 2, "countermeasure": 1} | {
    **dict.fromkeys(("customize", "gallery", "eval"), 1)
}
PROCESSORS = dict.fromkeys(("protect", "protected", "unprotected"), "name")  # in newer records
# A record of scores that others measured, marked by the key `imported`. It has any of the scores.
IMPORTED = {
    "schema_version": "count",
    "imported": {"source": "name", "file": "text", "line": "count"},
    **dict.fromkeys(("dataset", "identity", "attack"), "name"),
    "eps": BUDGET,
    **dict.fromkeys(("surrogate_model", "base_model", "countermeasure"), "name"),
    "clean_photos": "count",
    **dict.fromkeys(("adversary", "customizer"), "name"),
    "seed": "count",
    "scorer": {"backbone": "name"},
    "scores": {"protected": "mapping"},
    "perceptibility": "mapping",
}


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
    except (ValueError, RecursionError) as error:
        raise RecordError(
            f"{path}: no record, for it is no JSON file ({error}); name records, or run again what "
            "it was to hold"
        ) from None
    check(record, path)
    return record


def read_all(folder: Path) -> list[dict]:
    """Every record in a folder and the folders in it, sorted by path."""
    if not Path(folder).is_dir():
        raise RecordError(f"{folder}: no such folder of records")
    return [read(path) for path in sorted(Path(folder).rglob("*.json"))]


def natural(name: str) -> tuple[int, str]:
    """Sorts "9" before "10"."""
    return (int(name), "") if name.isdecimal() else (10**18, name)


def files_of(paths: Sequence[Path]) -> list[Path]:
    """The records' files that the paths name; raises RecordError for a path without any."""
    found = []
    for path in paths:
        folder = path / "records" if (path / "records").is_dir() else path
        here = [path] if path.is_file() else sorted(folder.rglob("*.json"))
        if not here:
            raise RecordError(f"{path}: no record there; name records or an output_dir")
        found += here
    return found


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
        for arm in ("protected", "unprotected"):
            where, scores = f"scores.{arm}.", record["scores"][arm]
            _check_given(scores, IMAGE_SCORES, path, where)
            for rows in ("prompts", "images"):
                _check_rows(scores[rows], IMAGE_SCORES, path, f"{where}{rows}")
        of_photos = record["perceptibility"]
        _check_given(of_photos, PERCEPTIBILITY, path, "perceptibility.")
        _check_rows(of_photos["images"], PERCEPTIBILITY, path, "perceptibility.images")
        _check_given(record, {"processors": "mapping", "stages": "mapping"}, path, "")
        if stages := record.get("stages"):
            _check_keys(stages, dict.fromkeys(STAGES, "count"), path, "stages.")
        if processors := record.get("processors"):
            _check_keys(processors, PROCESSORS, path, "processors.")


def _check_imported(record: Mapping, path: Path) -> None:
    _check_keys(record, IMPORTED, path, "")
    scores = record["scores"]["protected"]
    for where, known, given in (
        ("scores.protected", IMAGE_SCORES, scores),
        ("perceptibility", PERCEPTIBILITY, record["perceptibility"]),
    ):
        if unknown := set(given) - set(known):
            raise RecordError(
                f"{path}: {where}.{min(unknown)} is no score: expected any of {', '.join(known)}"
            )
        _check_given(given, known, path, f"{where}.")
    if not scores:
        raise RecordError(f"{path}: scores.protected is empty, expected a score")
    if "ism" in scores and (missing := [key for key in BESIDE_ISM if key not in scores]):
        raise RecordError(
            f"{path}: scores.protected.ism stands without {' and '.join(missing)}, which say what "
            "became of images without a face"
        )


def _check_given(values: Mapping, known: Mapping[str, str], path: Path, prefix: str) -> None:
    """Check those of the known keys that are there."""
    _check_keys(values, {key: kind for key, kind in known.items() if key in values}, path, prefix)


def _check_rows(rows: list, known: Mapping[str, str], path: Path, where: str) -> None:
    """Check the known scores of single images or prompts; any may be null."""
    fits = [(key, KINDS[kind.rstrip("?")]) for key, kind in known.items()]
    for k, row in enumerate(rows):
        if wrong := [key for key, fit in fits if row.get(key) is not None and not fit(row[key])]:
            _check_keys(row, {wrong[0]: known[wrong[0]]}, path, f"{where}[{k}].")


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
