"""Scores that others measured, one line of a CSV file per identity, as records marked imported."""

import argparse
import csv
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments.records import record as records
from experiments.records.naming import OWN
from experiments.store.artifacts import key_of, safe_name

SETTINGS = {
    "dataset": "text",
    "customizer": "text",
    "base_model": "text",
    "surrogate_model": "text",
    "backbone": "text",
    "countermeasure": "text",
    "clean_photos": "count",
    "adversary": "text",
    "seed": "count",
}
DEFAULTS = {"countermeasure": "none", "clean_photos": 0, "adversary": "as_assumed", "seed": 0}
# what a line says of itself: words of the command line and kinds of the values
LINE = {"method": "text", "budget": records.BUDGET, "identity": "text"}
SCORES = tuple(records.IMAGE_SCORES)
KINDS = LINE | SETTINGS | {key: kind.rstrip("?") for key, kind in records.METRIC_KINDS.items()}


class ImportRefused(ValueError):
    """A table that cannot be imported; the message names file, line and column."""


def imported(
    file: Path, columns: Mapping[str, str], settings: Mapping[str, str], source: str
) -> dict[str, dict]:
    """Return the records of a CSV file by their names; raises ImportRefused.

    `columns` maps a name of KINDS to the heading of its column, `settings` those of SETTINGS that
    are the same in every line. `source` says where the scores were published. An empty cell is a
    score that was not measured.
    """
    if not source.strip() or source == OWN:
        raise ImportRefused(f"--source {source!r}: say where the scores were published")
    fixed = {key: _parsed(text, key, f"--settings {key}") for key, text in settings.items()}
    _refuse_incomplete(columns, settings)
    found: dict[str, dict] = {}
    with Path(file).open(newline="", encoding="utf-8-sig") as lines:
        reader = csv.DictReader(lines)
        for key, heading in columns.items():
            if heading not in (reader.fieldnames or []):
                there = ", ".join(reader.fieldnames or ["nothing"])
                raise ImportRefused(
                    f"{file}: line 1: no column {heading!r} for {key}; it has {there}"
                )
        _refuse_twice(reader.fieldnames, f"{file}: line 1: column")
        for row in reader:
            where = f"{file}: line {reader.line_num}"
            if None in row or None in row.values():
                raise ImportRefused(
                    f"{where}: {'more' if None in row else 'fewer'} cells than headings; put a "
                    "comma within a cell between quotes"
                )
            values = DEFAULTS | fixed
            for key, heading in columns.items():
                text = row[heading].strip()
                if text or key in LINE or key in SETTINGS:
                    values[key] = _parsed(text, key, f"{where}: column {heading!r}")
            origin = {"source": source, "file": Path(file).name, "line": reader.line_num}
            record = _record(values, origin)
            name = _name(record)
            if name in found:
                other = found[name]["imported"]["line"]
                raise ImportRefused(
                    f"{where}: column {columns['identity']!r}: method, budget, identity and seed "
                    f"of line {other} again; put different seeds into a column"
                )
            try:
                records.check(record, Path(where))
            except records.RecordError as error:
                raise ImportRefused(str(error)) from None
            found[name] = record
    if not found:
        raise ImportRefused(f"{file}: line 2: no line below the headings")
    return found


def _refuse_incomplete(columns: Mapping[str, str], settings: Mapping[str, str]) -> None:
    known = {"--columns": (columns, KINDS), "--settings": (settings, SETTINGS)}
    for option, (given, allowed) in known.items():
        if unknown := [key for key in given if key not in allowed]:
            raise ImportRefused(
                f"{option} {unknown[0]}=...: unknown, expected any of {', '.join(allowed)}"
            )
    if both := sorted(columns.keys() & settings.keys()):
        raise ImportRefused(f"{both[0]} is among --columns and among --settings: name it once")
    for key in (*LINE, *SETTINGS):
        if key not in columns and key not in settings and key not in DEFAULTS:
            more = "" if key in LINE else f", or --settings {key}=... for all lines"
            raise ImportRefused(f"{key} is missing: name its column in --columns {key}=...{more}")
    if not any(key in columns for key in SCORES):
        raise ImportRefused(f"--columns names no score: add any of {', '.join(SCORES)}")


def _parsed(text: str, key: str, where: str) -> str | float:
    kind = KINDS[key]
    if kind == "text":
        value: str | float = text
        fits = bool(text)
    else:
        try:
            value = int(text) if kind == "count" else float(text)
        except ValueError:
            fits = False
        else:
            fits = records.KINDS[kind](value) and abs(value) < float("inf") and "_" not in text
    if not fits:
        more = {"text": ", which may not be empty"}.get(kind, "")
        more = " (25 % is 0.25)" if key == "fdfr" else more
        raise ImportRefused(f"{where} is {text!r}, expected a {kind}{more}")
    return value


def _record(values: Mapping[str, str | float], origin: Mapping) -> dict:
    names = [key for key in SETTINGS if key not in ("backbone", "seed")]
    return {
        "schema_version": records.SCHEMA_VERSION,
        "imported": origin,
        "identity": values["identity"],
        "attack": values["method"],
        "eps": values["budget"],
        **{key: values[key] for key in names},
        "seed": values["seed"],
        "scorer": {"backbone": values["backbone"]},
        "scores": {"protected": {key: values[key] for key in SCORES if key in values}},
        "perceptibility": {key: values[key] for key in records.VISIBILITY if key in values},
    }


def _name(record: Mapping) -> str:
    """One name for what was scored, so that a corrected file replaces its records."""
    unlike = ("imported", "scores", "perceptibility")
    what = {key: value for key, value in record.items() if key not in unlike}
    key = key_of(
        "imported", records.SCHEMA_VERSION, what | {"source": record["imported"]["source"]}
    )
    parts = ("imported", record["dataset"], record["identity"], record["attack"], key)
    return safe_name("_".join(parts))


def main(arguments: Sequence[str] | None = None) -> None:
    command = argparse.ArgumentParser(
        prog="python -m experiments.leaderboard.imports", description=__doc__, allow_abbrev=False
    )
    command.add_argument("file", type=Path, metavar="FILE.csv")
    command.add_argument(
        "--columns",
        nargs="+",
        required=True,
        metavar="NAME=HEADING",
        help=f"the column of each of {', '.join(KINDS)}; budget in grey levels",
    )
    command.add_argument(
        "--settings",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help=f"what is the same in all lines, of {', '.join(SETTINGS)}",
    )
    command.add_argument("--source", required=True, help="where the scores were published")
    command.add_argument("--output-dir", type=Path, default=Path("outputs"))
    asked = command.parse_args(arguments)
    folder = asked.output_dir / "records"
    try:
        found = imported(asked.file, _pairs(asked.columns), _pairs(asked.settings), asked.source)
        for name, record in found.items():
            records.write(record, folder, name)
    except (ImportRefused, OSError) as error:
        sys.exit(f"error: {error}")
    except (csv.Error, UnicodeDecodeError) as error:
        sys.exit(f"error: {asked.file}: not a CSV file in UTF-8 ({error})")
    print(f"{len(found)} records in {folder}")


def _pairs(words: Sequence[str]) -> dict[str, str]:
    if wrong := [word for word in words if "=" not in word]:
        raise ImportRefused(f"{wrong[0]}: expected NAME=VALUE")
    _refuse_twice([word.split("=", 1)[0] for word in words], "NAME=VALUE: the name")
    return dict(word.split("=", 1) for word in words)


def _refuse_twice(names: Sequence[str], what: str) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ImportRefused(f"{what} {name!r} stands there twice")


if __name__ == "__main__":
    main()
