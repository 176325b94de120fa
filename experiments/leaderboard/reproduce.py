"""Runs again what the committed records came from, and says which numbers moved.

`python -m experiments.leaderboard.reproduce` works in a folder of its own, another for other code
and another for each number of threads. Killed, it goes on where it was.
"""

import argparse
import hashlib
import json
import re
import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd
from tabulate import tabulate

from experiments.processes import ROOT, Command, outcomes, usable_cores
from experiments.records.files import files_of
from experiments.records.published import RECORDS, read_all
from experiments.records.record import Record, RecordError
from experiments.store.provenance import digest_of_file, versions

# files that decide numbers: code, settings, weights
DECISIVE = (
    *("run.py", "experiments/**/*.py", "anticustom/**/*.py", "eval/**/*.py", "conf/**/*.yaml"),
    *("anticustom/weights/**/*", "eval/weights/*"),
)
# arguments that do not decide a number; some stages alone would need what others made before
ELSEWHERE = ("output_dir", "tracker", "force", "stages", "hydra/launcher", "hydra.launcher")


def commands(records: Iterable[Record]) -> list[tuple[str, int]]:
    """Return the different commands that made records, each with its number of threads.

    A command names the precision, and the processor where no GPU made the record. Sums of floats
    depend on the number of threads.
    """
    made = []
    for record in records:
        words = [*shlex.split(record.command), f"precision={record.config['precision']}"]
        words += [] if record.machine.get("gpu") else ["device=cpu"]
        made.append((shlex.join(words), threads_of(record)))
    return list(dict.fromkeys(made))


def threads_of(record: Record) -> int:
    return record.machine.get("torch_threads") or 1


def arguments_of(command: str, output_dir: Path) -> list[str]:
    """Return the arguments of a command of run.py, sent to another folder."""
    words = shlex.split(command)[2:]
    elsewhere = re.compile(rf"[+~]*({'|'.join(map(re.escape, ELSEWHERE))})([./=]|$)")
    kept = [word for word in words if not elsewhere.match(word)]
    return [*kept, f"output_dir={output_dir}", "tracker=none"]


def state_of_code(root: Path) -> str:
    """Return 12 hexadecimal digits that change with code, settings, weights and packages."""
    files = sorted(f for pattern in DECISIVE for f in root.glob(pattern) if f.is_file())
    content = {file.relative_to(root).as_posix(): digest_of_file(file) for file in files}
    packages = {name: version for name, version in versions().items() if name != "git"}
    return hashlib.sha256(json.dumps([content, packages]).encode()).hexdigest()[:12]


def compared(
    committed: Iterable[Record], again: Iterable[Record]
) -> tuple[pd.DataFrame, list[str]]:
    """Return a row for each number of the committed records that came again, and the names of the
    records that did not.

    Its columns are record, score, committed, again and difference.
    """
    twins = {_place(record): record for record in again}
    rows, missing = [], []
    for record in committed:
        if twin := twins.get(_place(record)):
            numbers = _scores(twin)
            rows += [
                (record.name, score, value, numbers.get(score))
                for score, value in _scores(record).items()
            ]
        else:
            missing.append(record.name)
    table = pd.DataFrame(rows, columns=["record", "score", "committed", "again"])
    table = table.astype({"committed": float, "again": float})
    return table.assign(difference=table.again - table.committed), missing


def _place(record: Record) -> tuple:
    """Return the names of a record's row, its identity and seed.

    No digest is part of them: results and weights may have moved.
    """
    names = (record.dataset, record.customizer, record.base_model, record.surrogate_model)
    names += (record.countermeasure, record.clean_photos, record.adversary, record.details)
    return (*names, record.scorer.backbone, record.method, record.eps, record.identity, record.seed)


def _scores(record: Record) -> dict[str, float | None]:
    groups = {
        "unprotected": record.scores.unprotected,
        "protected": record.scores.protected,
        "photos": record.perceptibility,
    }
    return {
        f"{group} {metric}": value
        for group, scores in groups.items()
        for metric, value in scores.numbers.items()
    }


def processors_of(records: Iterable[Record]) -> str:
    """Return the processors that made records, in words."""
    kinds = {kind for record in records for kind in record.processors.model_dump().values()}
    return ", ".join(sorted(kinds)) or "not recorded"


def moved(numbers: pd.DataFrame) -> pd.DataFrame:
    """Return the rows whose number came again otherwise, or in one of two runs only."""
    both_missing = numbers.committed.isna() & numbers.again.isna()
    return numbers[(numbers.committed != numbers.again) & ~both_missing]


def summary(numbers: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each score: how many of its numbers moved, and by how much."""
    differences = numbers.groupby("score", sort=False).difference
    table = pd.DataFrame({"numbers": differences.size()})
    table["moved"] = moved(numbers).score.value_counts().reindex(table.index, fill_value=0)
    table["mean difference"] = differences.mean()
    table["largest"] = numbers.difference.abs().groupby(numbers.score).max()
    return table.reset_index()


def report(numbers: pd.DataFrame, missing: Sequence[str]) -> str:
    """Return in words which numbers moved, by how much, and which records did not come again."""
    changes, blocks = moved(numbers), []
    if len(changes):
        largest = changes.difference.abs().fillna(0).max()
        blocks = [
            _text(changes),
            f"largest absolute difference: {largest:.6g}",
            f"\n{_text(summary(numbers))}\n",
        ]
    blocks += [f"did not come again: {name}" for name in missing]
    blocks.append(f"{len(numbers) - len(changes)} of {len(numbers)} numbers are the same")
    return "\n".join(blocks)


def _text(table: pd.DataFrame) -> str:
    forms = ["+.6g" if "difference" in name else ".6g" for name in table]
    return tabulate(table, "keys", floatfmt=forms, showindex=False, disable_numparse=[0, 1])


def again_in(
    folder: Path, committed: Sequence[Record], jobs: Sequence[tuple[str, int]], processes: int = 1
) -> tuple[pd.DataFrame, list[str]]:
    """Run all commands, `processes` at a time, and compare their records with the committed ones.

    The commands of each number of threads have a folder of their own.
    """
    places = {threads: folder / f"threads-{threads}" for _, threads in jobs}
    runs = [
        Command(arguments_of(command, places[threads]), threads, folder / f"logs/reproduce-{k}.txt")
        for k, (command, threads) in enumerate(jobs, 1)
    ]
    for k, is_success in enumerate(outcomes(runs, processes)):
        failure = "" if is_success else f"\n  failed: see {runs[k].log}"
        print(f"{k + 1} of {len(jobs)}: {jobs[k][0]}{failure}", flush=True)
    tables, missing, made = [], [], []
    for threads, place in places.items():
        again = list(read_all(sorted((place / "records").glob("*.json"))).values())
        before = [record for record in committed if threads_of(record) == threads]
        numbers, names = compared(before, again)
        tables.append(numbers)
        missing += names
        made += again
    print(f"committed records: made by {processors_of(committed)}")
    print(f"again: made by {processors_of(made)}")
    return pd.concat(tables, ignore_index=True), missing


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--records", type=Path, default=RECORDS, help="a file or folder of records (.json, .jsonl)"
    )
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/reproduce"))
    parser.add_argument("--processes", type=int, default=usable_cores(), help="commands at once")
    options = parser.parse_args(arguments)
    folder = options.output_dir.absolute() / state_of_code(ROOT)
    try:
        records = read_all(files_of([options.records])).values()
        committed = [record for record in records if isinstance(record, Record)]
        jobs = commands(committed)
        if not jobs:
            raise RecordError(
                f"--records {options.records}: no record there that a run made; name a folder of "
                "such records"
            )
        seconds = [value for record in committed for _, value in record.seconds if value]
        hours = f"{sum(seconds) / 3600:.0f} core hours"
        print(f"{len(jobs)} commands of about {hours}, as the records took")
        numbers, missing = again_in(folder, committed, jobs, options.processes)
    except (RecordError, OSError) as error:
        sys.exit(f"error: {error}")
    print(report(numbers, missing))
    sys.exit(1 if missing else 0)


if __name__ == "__main__":
    main()
