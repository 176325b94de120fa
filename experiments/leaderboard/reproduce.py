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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tabulate import tabulate

from eval.metrics import METRICS
from experiments.leaderboard.board import RECORDS, read
from experiments.processes import ROOT, Command, outcomes, usable_cores
from experiments.records import record as records
from experiments.records.naming import details_of_method, details_of_setting, names
from experiments.store.provenance import digest_of_file, versions

# files that decide numbers: code, settings, weights
DECISIVE = (
    *("run.py", "experiments/**/*.py", "anticustom/**/*.py", "eval/**/*.py", "conf/**/*.yaml"),
    *("anticustom/weights/**/*", "eval/weights/*"),
)
# arguments that do not decide a number; some stages alone would need what others made before
ELSEWHERE = ("output_dir", "tracker", "force", "stages", "hydra/launcher", "hydra.launcher")


@dataclass(frozen=True)
class Number:
    """A score of a record, as committed and as it came again (None: it had no value)."""

    record: str
    score: str
    committed: float | None
    again: float | None

    @property
    def difference(self) -> float | None:
        known = self.committed is not None and self.again is not None
        return self.again - self.committed if known else None


def commands(found: Mapping[str, Mapping]) -> list[tuple[str, int]]:
    """The different commands that made records, with the precision, and on a processor where no GPU
    made them; each with its number of threads, which sums of floats depend on. Imported records
    have none.
    """
    own = [record for record in found.values() if "imported" not in record]
    return list(dict.fromkeys((_as_made(record), threads_of(record)) for record in own))


def _as_made(record: Mapping) -> str:
    device = [] if record["machine"].get("gpu") else ["device=cpu"]
    return shlex.join(
        [*shlex.split(record["command"]), f"precision={record['config']['precision']}", *device]
    )


def threads_of(record: Mapping) -> int:
    return record["machine"].get("torch_threads") or 1


def arguments_of(command: str, output_dir: Path) -> list[str]:
    """The arguments of a command of run.py, sent to another folder."""
    words = shlex.split(command)[2:]
    elsewhere = re.compile(rf"[+~]*({'|'.join(map(re.escape, ELSEWHERE))})([./=]|$)")
    kept = [word for word in words if not elsewhere.match(word)]
    return [*kept, f"output_dir={output_dir}", "tracker=none"]


def state_of_code(root: Path) -> str:
    """12 hexadecimal digits that change with whatever decides numbers but a record's command: code,
    settings, weights, versions of packages.
    """
    files = sorted(f for pattern in DECISIVE for f in root.glob(pattern) if f.is_file())
    content = {file.relative_to(root).as_posix(): digest_of_file(file) for file in files}
    packages = {name: version for name, version in versions().items() if name != "git"}
    return hashlib.sha256(json.dumps([content, packages]).encode()).hexdigest()[:12]


def compared(
    committed: Mapping[str, Mapping], again: Mapping[str, Mapping]
) -> tuple[list[Number], list[str]]:
    """Every number of the committed records beside the one that came again, and the names of the
    records that did not come again.
    """
    by_key = {key_of(record): record for record in again.values()}
    numbers, missing = [], []
    for name, record in committed.items():
        if "imported" in record:
            continue
        if other := by_key.get(key_of(record)):
            now = dict(scores(other))
            numbers += [
                Number(name, score, value, now.get(score)) for score, value in scores(record)
            ]
        else:
            missing.append(name)
    return numbers, missing


def key_of(record: Mapping) -> str:
    """What a record is of. No digest of what runs made or used is in it: those may move too."""
    made = {"weights", "scorer", "stages", *record["digests"]}
    setting = {k: v for k, v in details_of_setting(record).items() if k not in made}
    method = {k: v for k, v in details_of_method(record).items() if k not in made}
    which = {key: record[key] for key in ("attack", "eps", "identity", "seed")}
    return json.dumps([names(record), which, setting, method], sort_keys=True)


def scores(record: Mapping) -> Iterator[tuple[str, float | None]]:
    parts = {**record["scores"], "photos": record["perceptibility"]}
    for part, of in parts.items():
        for metric in METRICS:
            if metric in of:
                yield f"{part} {metric}", of[metric]


def processors_of(found: Iterable[Mapping]) -> str:
    """What made the records, in words."""
    kinds = [of for record in found for of in record.get("processors", {}).values()]
    return ", ".join(sorted(set(kinds))) or "not recorded"


def summary(numbers: Sequence[Number]) -> str:
    """A row for each score: how many of its numbers moved, and by how much."""
    rows = []
    for score in dict.fromkeys(number.score for number in numbers):
        own = [number for number in numbers if number.score == score]
        steps = [number.difference for number in own if number.difference is not None]
        moved = sum(number.committed != number.again for number in own)
        mean = sum(steps) / len(steps) if steps else None
        largest = max(map(abs, steps), default=None)
        rows.append([score, len(own), moved, _text(mean, "+"), _text(largest)])
    headings = ["score", "numbers", "moved", "mean difference", "largest"]
    return tabulate(rows, headings, disable_numparse=True)


def report(numbers: Sequence[Number], missing: Sequence[str]) -> str:
    moved = [number for number in numbers if number.committed != number.again]
    blocks = []
    if moved:
        rows = [
            [n.record, n.score, *map(_text, (n.committed, n.again)), _text(n.difference, "+")]
            for n in moved
        ]
        headings = ["record", "score", "committed", "again", "difference"]
        blocks.append(tabulate(rows, headings, disable_numparse=True))
        steps = [abs(number.difference) for number in moved if number.difference is not None]
        blocks.append(f"largest absolute difference: {max(steps, default=0):.6g}")
        blocks.append(f"\n{summary(numbers)}\n")
    blocks += [f"did not come again: {name}" for name in missing]
    blocks.append(f"{len(numbers) - len(moved)} of {len(numbers)} numbers are the same")
    return "\n".join(blocks)


def _text(value: float | None, sign: str = "") -> str:
    return "-" if value is None else f"{value:{sign}.6g}"


def again_in(
    folder: Path,
    committed: Mapping[str, Mapping],
    wanted: Sequence[tuple[str, int]],
    processes: int = 1,
) -> tuple[list[Number], list[str]]:
    """Run all commands, `processes` at a time and those of a number of threads in a folder of its
    own, and compare there.
    """
    places = {threads: folder / f"threads-{threads}" for _, threads in wanted}
    runs = [
        Command(arguments_of(command, places[threads]), threads, folder / f"logs/reproduce-{k}.txt")
        for k, (command, threads) in enumerate(wanted, 1)
    ]
    succeeded = outcomes(runs, processes)
    for k, ((command, _), run, fine) in enumerate(zip(wanted, runs, succeeded, strict=True), 1):
        failed = "" if fine else f"\n  failed: see {run.log}"
        print(f"{k} of {len(wanted)}: {command}{failed}", flush=True)
    numbers, missing, made = [], [], []
    for threads, place in places.items():
        again, _ = read(place / "records")
        made += again.values()
        own = {
            name: record
            for name, record in committed.items()
            if "imported" not in record and threads_of(record) == threads
        }
        found, lacking = compared(own, again)
        numbers, missing = numbers + found, missing + lacking
    print(f"committed records: made by {processors_of(committed.values())}")
    print(f"again: made by {processors_of(made)}")
    return numbers, missing


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=Path, default=RECORDS)
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/reproduce"))
    parser.add_argument("--processes", type=int, default=usable_cores(), help="commands at once")
    asked = parser.parse_args(arguments)
    folder = asked.output_dir.absolute() / state_of_code(ROOT)
    try:
        committed, _ = read(asked.records)
        wanted = commands(committed)
        if not wanted:
            sys.exit(
                f"error: --records {asked.records}: no record there that a run made; name a folder "
                "of such records"
            )
        own = [record for record in committed.values() if "imported" not in record]
        hours = sum(sum(filter(None, record["seconds"].values())) for record in own) / 3600
        print(f"{len(wanted)} commands of about {hours:.0f} core hours, as the records took")
        numbers, missing = again_in(folder, committed, wanted, asked.processes)
    except (records.RecordError, OSError) as error:
        sys.exit(f"error: {error}")
    print(report(numbers, missing))
    sys.exit(1 if missing else 0)


if __name__ == "__main__":
    main()
