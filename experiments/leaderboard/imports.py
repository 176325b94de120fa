"""Imports scores that others measured, from a CSV file with one line for each identity.

`python -m experiments.leaderboard.imports FILE.csv ...` writes records that are marked as imported.
"""

import argparse
import csv
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from eval.metrics import METRICS
from experiments.records.files import write
from experiments.records.record import OWN, SCHEMA_VERSION, RecordError, Scored, record_of
from experiments.store.artifacts import digest_of, safe_name

VISIBILITY = ("linf", "psnr", "ssim", "lpips")  # scores of photos; all others are of galleries
LINE = {"method": "attack", "budget": "eps", "identity": "identity"}  # with their keys in a record
DEFAULTS = {"countermeasure": "none", "clean_photos": "0", "adversary": "as_assumed", "seed": "0"}
SETTINGS = ("dataset", "customizer", "base_model", "surrogate_model", "backbone", *DEFAULTS)
NAMES = (*LINE, *SETTINGS, *METRICS)
INTEGERS = ("clean_photos", "seed")
NUMBERS = ("budget", *INTEGERS, *METRICS)


def imported(
    file: Path, columns: Mapping[str, str], settings: Mapping[str, str], source: str
) -> dict[str, Scored]:
    """Return the records of a CSV file by their names.

    `columns` maps names to headings, `settings` are the same in every line. An empty cell is a
    score that was not measured. `source` says where the scores were published. Raises RecordError,
    whose message names the file, the line and the column or key.
    """
    if not source.strip() or source == OWN:
        raise RecordError(f"--source {source!r}: say where the scores were published")
    _check_names(columns, settings)
    records: dict[str, Scored] = {}
    for line, row in _rows(file, columns):
        where = f"{file}: line {line}"
        cells = {key: row[heading].strip() for key, heading in columns.items()}
        measured = {key: text for key, text in cells.items() if text or key not in METRICS}
        texts = {**DEFAULTS, **settings, **measured}
        values = {key: _value(text, key) for key, text in texts.items()}
        record = _record(values, {"source": source, "file": file.name, "line": line}, where)
        if record.name in records:
            raise RecordError(
                f"{where}: method, budget, identity and seed of line "
                f"{records[record.name].imported.line} again; put different seeds into a column"
            )
        records[record.name] = record
    if not records:
        raise RecordError(f"{file}: line 2: no line below the headings")
    return records


def _check_names(columns: Mapping[str, str], settings: Mapping[str, str]) -> None:
    unknown = [f"--columns {name}" for name in columns if name not in NAMES]
    unknown += [f"--settings {name}" for name in settings if name not in SETTINGS]
    if unknown:
        expected = ", ".join(NAMES if unknown[0].startswith("--columns") else SETTINGS)
        raise RecordError(f"{unknown[0]}=...: unknown, expected any of {expected}")
    if both := [name for name in columns if name in settings]:
        raise RecordError(f"{both[0]} is among --columns and among --settings: name it once")
    known = {*columns, *settings, *DEFAULTS}
    if missing := [name for name in (*LINE, *SETTINGS) if name not in known]:
        place = "--columns or, for all lines, --settings" if missing[0] in SETTINGS else "--columns"
        raise RecordError(f"{missing[0]} is missing: name it in {place}")


def _rows(file: Path, columns: Mapping[str, str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the number and the cells of each line below the headings."""
    with file.open(newline="", encoding="utf-8-sig") as lines:
        reader = csv.DictReader(lines)
        headings = reader.fieldnames or []
        for key, heading in columns.items():
            if headings.count(heading) != 1:
                raise RecordError(
                    f"{file}: line 1: {headings.count(heading) or 'no'} columns {heading!r} for "
                    f"{key}, expected one; the headings are {', '.join(headings) or 'missing'}"
                )
        for row in reader:
            where = f"{file}: line {reader.line_num}"
            if None in row or None in row.values():
                count = "more" if None in row else "fewer"
                advice = "put a comma within a cell between quotes"
                raise RecordError(f"{where}: {count} cells than headings; {advice}")
            yield reader.line_num, row


def _value(text: str, key: str) -> str | int | float:
    """Return a number if the key has numbers and the text is one, else the text.

    The schema of records refuses a text in the place of a number.
    """
    if key not in NUMBERS or "_" in text:
        return text
    try:
        return int(text) if key in INTEGERS else float(text)
    except ValueError:
        return text


def _record(values: Mapping[str, str | float], origin: Mapping, where: str) -> Scored:
    """Return the record of a line.

    Its name has a digest of all but the scores, so that a corrected file replaces its records.
    """
    names = {key: values[key] for key in SETTINGS if key != "backbone"}
    names |= {LINE[key]: values[key] for key in LINE}
    place = {**names, "backbone": values["backbone"], "source": origin["source"]}
    digest = digest_of("imported", SCHEMA_VERSION, place)
    words = ("imported", names["dataset"], names["identity"], names["attack"], digest)
    scores = {key: value for key, value in values.items() if key in METRICS}
    entries = {
        "schema_version": SCHEMA_VERSION,
        "name": safe_name("_".join(words)),
        **names,
        "method": names["attack"],
        "row": {
            "setting": digest_of("setting", 1, {"source": origin["source"]}),
            "method": digest_of("method", 1, {"method": names["attack"]}),
        },
        "scorer": {"backbone": values["backbone"]},
        "scores": {"protected": {k: v for k, v in scores.items() if k not in VISIBILITY}},
        "perceptibility": {k: v for k, v in scores.items() if k in VISIBILITY},
        "imported": origin,
    }
    return record_of(entries, where)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.leaderboard.imports", description=__doc__, allow_abbrev=False
    )
    add = parser.add_argument
    add("file", type=Path, metavar="FILE.csv")
    names = f"columns of {', '.join(NAMES)}; budget in grey levels"
    add("--columns", nargs="+", required=True, metavar="NAME=HEADING", help=names)
    names = f"the same in all lines, of {', '.join(SETTINGS)}"
    add("--settings", nargs="+", default=[], metavar="NAME=VALUE", help=names)
    add("--source", required=True, help="where the scores were published")
    add("--output-dir", type=Path, default=Path("outputs"))
    options = parser.parse_args(arguments)
    folder = options.output_dir / "records"
    try:
        columns, settings = _pairs(options.columns), _pairs(options.settings)
        records = imported(options.file, columns, settings, options.source)
        for record in records.values():
            write(record, folder)
    except (RecordError, OSError) as error:
        sys.exit(f"error: {error}")
    except (csv.Error, UnicodeDecodeError) as error:
        sys.exit(f"error: {options.file}: not a CSV file in UTF-8 ({error})")
    print(f"{len(records)} records in {folder}")


def _pairs(words: Sequence[str]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or name in pairs:
            raise RecordError(f"{word}: expected NAME=VALUE, each name once")
        pairs[name] = value
    return pairs


if __name__ == "__main__":
    main()
