"""Imports scores that others measured, from a CSV file with one line for each identity.

`python -m experiments.leaderboard.imports FILE.csv ...` writes records that are marked as imported.
"""

import argparse
import contextlib
import csv
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from eval.metrics import METRICS
from experiments.records.files import write
from experiments.records.record import OWN, SCHEMA_VERSION, RecordError, Scored, record_of
from experiments.store.artifacts import digest_of, safe_name

VISIBILITY = ("linf", "psnr", "ssim", "lpips")  # scores of photos; all others are of galleries
SCORES = tuple(metric for metric in METRICS if metric not in VISIBILITY)
LINE = {"method": "attack", "budget": "eps", "identity": "identity"}  # with their keys in a record
DEFAULTS = {"countermeasure": "none", "clean_photos": 0, "adversary": "as_assumed", "seed": 0}
SETTINGS = ("dataset", "customizer", "base_model", "surrogate_model", "backbone", *DEFAULTS)
NUMBERS = ("budget", "clean_photos", "seed", *METRICS)


class ImportRefused(ValueError):
    """A table that cannot be imported; the message names file, line and column."""


def imported(
    file: Path, columns: Mapping[str, str], settings: Mapping[str, str], source: str
) -> dict[str, Scored]:
    """Return the records of a CSV file by their names; raise ImportRefused.

    `columns` maps names to headings, `settings` are the same in every line. An empty cell is a
    score that was not measured. `source` says where the scores were published.
    """
    if not source.strip() or source == OWN:
        raise ImportRefused(f"--source {source!r}: say where the scores were published")
    _check_names(columns, settings)
    fixed = {key: _value(text, key, f"--settings {key}") for key, text in settings.items()}
    records: dict[str, Scored] = {}
    for number, row in _rows(Path(file), columns):
        where = f"{file}: line {number}"
        values = DEFAULTS | fixed
        for key, heading in columns.items():
            if row[heading].strip() or key not in METRICS:
                values[key] = _value(row[heading].strip(), key, f"{where}: column {heading!r}")
        record = _record(values, {"source": source, "file": Path(file).name, "line": number}, where)
        if record.name in records:
            raise ImportRefused(
                f"{where}: method, budget, identity and seed of line "
                f"{records[record.name].imported.line} again; put different seeds into a column"
            )
        records[record.name] = record
    if not records:
        raise ImportRefused(f"{file}: line 2: no line below the headings")
    return records


def _check_names(columns: Mapping[str, str], settings: Mapping[str, str]) -> None:
    known = {
        "--columns": (columns, (*LINE, *SETTINGS, *METRICS)),
        "--settings": (settings, SETTINGS),
    }
    for option, (names, allowed) in known.items():
        if unknown := [name for name in names if name not in allowed]:
            raise ImportRefused(
                f"{option} {unknown[0]}=...: unknown, expected any of {', '.join(allowed)}"
            )
    if both := sorted(columns.keys() & settings.keys()):
        raise ImportRefused(f"{both[0]} is among --columns and among --settings: name it once")
    if missing := {*LINE, *SETTINGS} - columns.keys() - settings.keys() - DEFAULTS.keys():
        name = min(missing, key=(*LINE, *SETTINGS).index)
        hint = "" if name in LINE else f", or --settings {name}=... for all lines"
        raise ImportRefused(f"{name} is missing: name its column in --columns {name}=...{hint}")
    if not columns.keys() & set(SCORES):
        raise ImportRefused(f"--columns names no score: add any of {', '.join(SCORES)}")


def _rows(file: Path, columns: Mapping[str, str]):
    """Yield the number and the cells of each line below the headings."""
    with file.open(newline="", encoding="utf-8-sig") as lines:
        reader = csv.DictReader(lines)
        headings = reader.fieldnames or []
        for key, heading in columns.items():
            if heading not in headings:
                raise ImportRefused(
                    f"{file}: line 1: no column {heading!r} for {key}; it has "
                    f"{', '.join(headings) or 'nothing'}"
                )
        _refuse_twice(headings, f"{file}: line 1: column")
        for row in reader:
            if None in row or None in row.values():
                raise ImportRefused(
                    f"{file}: line {reader.line_num}: {'more' if None in row else 'fewer'} cells "
                    "than headings; put a comma within a cell between quotes"
                )
            yield reader.line_num, row


def _value(text: str, key: str, where: str) -> str | int | float:
    """Return a cell's text or number; the record refuses what is neither."""
    if not text:
        raise ImportRefused(f"{where} is empty, expected a value")
    if key not in NUMBERS or "_" in text:
        return text
    with contextlib.suppress(ValueError):
        return int(text) if key in ("clean_photos", "seed") else float(text)
    return text


def _record(values: Mapping[str, str | float], origin: Mapping, where: str) -> Scored:
    """Return the record of a line; its name is that of the place of its scores.

    A corrected file so replaces its records.
    """
    names = {key: values[key] for key in SETTINGS if key != "backbone"}
    names |= {LINE[key]: values[key] for key in LINE}
    place = {**names, "backbone": values["backbone"], "source": origin["source"]}
    key = digest_of("imported", SCHEMA_VERSION, place)
    entries = {
        "schema_version": SCHEMA_VERSION,
        "name": safe_name(
            "_".join(("imported", names["dataset"], names["identity"], names["attack"], key))
        ),
        **names,
        "method": names["attack"],
        "row": {
            "setting": digest_of("setting", 1, {"source": origin["source"]}),
            "method": digest_of("method", 1, {"method": names["attack"]}),
        },
        "scorer": {"backbone": values["backbone"]},
        "scores": {"protected": {key: values[key] for key in SCORES if key in values}},
        "perceptibility": {key: values[key] for key in VISIBILITY if key in values},
        "imported": dict(origin),
    }
    try:
        return record_of(entries, where)
    except RecordError as error:
        hint = " (25 % is 0.25)" if "fdfr is" in str(error) else ""
        raise ImportRefused(f"{error}{hint}") from None


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.leaderboard.imports", description=__doc__, allow_abbrev=False
    )
    parser.add_argument("file", type=Path, metavar="FILE.csv")
    parser.add_argument(
        "--columns",
        nargs="+",
        required=True,
        metavar="NAME=HEADING",
        help=f"columns of {', '.join((*LINE, *SETTINGS, *METRICS))}; budget in grey levels",
    )
    parser.add_argument(
        "--settings",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help=f"the same in all lines, of {', '.join(SETTINGS)}",
    )
    parser.add_argument("--source", required=True, help="where the scores were published")
    parser.add_argument("--output-dir", type=Path, default=Path("outputs"))
    options = parser.parse_args(arguments)
    folder = options.output_dir / "records"
    try:
        pairs = (_pairs(options.columns), _pairs(options.settings))
        records = imported(options.file, *pairs, options.source)
        for record in records.values():
            write(record, folder)
    except (ImportRefused, OSError) as error:
        sys.exit(f"error: {error}")
    except (csv.Error, UnicodeDecodeError) as error:
        sys.exit(f"error: {options.file}: not a CSV file in UTF-8 ({error})")
    print(f"{len(records)} records in {folder}")


def _pairs(words: Sequence[str]) -> dict[str, str]:
    if wrong := [word for word in words if "=" not in word]:
        raise ImportRefused(f"{wrong[0]}: expected NAME=VALUE")
    _refuse_twice([word.split("=", 1)[0] for word in words], "NAME=VALUE: the name")
    return dict(word.split("=", 1) for word in words)


def _refuse_twice(names: Sequence[str], place: str) -> None:
    for name in names:
        if list(names).count(name) > 1:
            raise ImportRefused(f"{place} {name!r} stands there twice")


if __name__ == "__main__":
    main()
