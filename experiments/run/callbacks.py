"""The check before the first file of a run, and the table at the end of a sweep."""

import json
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from experiments.store.disk import StoreError, atomic_write, check_writable

FAILURE, OUTCOME = "error.txt", "job.json"  # files in the folder of a job
SHARD = "dataset.shard="
KEYS = ("identity_retention", "ism", "ism_failures_as_0", "fdfr", "brisque")
COLUMNS = [("unprotected", KEYS[0]), *(("protected", key) for key in KEYS)]


class WritableOutputDir(Callback):
    """Ends the process in one line when `output_dir` cannot be written.

    Hydra itself, whose logs are the first files there, would show a traceback.
    """

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        try:
            check_writable(Path(config.output_dir))
        except StoreError as error:
            sys.exit(f"error: {error}")

    on_multirun_start = on_run_start


class SweepTable(Callback):
    """Prints the scores of the protected victims of a sweep, and ends with 1 if some jobs failed.

    Each job leaves its outcome in its folder, for a launcher may send it to another process. Jobs
    with the same records are shown once, and shards of one job are one row.
    """

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        for file in _outcomes(config):  # of an earlier sweep in the same folder
            file.unlink()

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        (Path(config.hydra.runtime.output_dir) / FAILURE).unlink(missing_ok=True)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        completed = job_return.status is JobStatus.COMPLETED
        if not completed or config.hydra.mode is not RunMode.MULTIRUN:
            return
        folder, paths = Path(config.hydra.runtime.output_dir), job_return.return_value
        failure = folder / FAILURE
        outcome = {
            "number": config.hydra.job.num,
            "overrides": job_return.overrides,
            "records": [str(Path(path).absolute()) for path in paths],
            "failure": failure.read_text() if failure.exists() else None,
        }
        _write(folder / OUTCOME, json.dumps(outcome, indent=1))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        outcomes = [json.loads(file.read_text()) for file in _outcomes(config)]
        outcomes.sort(key=lambda outcome: outcome["number"])
        _print_table(outcomes)
        jobs = [(" ".join(row["overrides"]), row["failure"]) for row in outcomes if row["failure"]]
        for words, reason in jobs:
            print(f"error: {words}: {reason}")
        if jobs:
            failed = "; ".join(words for words, _ in jobs)
            sys.exit(
                f"error: jobs failed, for the reasons above: {failed}. Run the sweep again for them"
            )


def note_failure(folder: Path, reason: str) -> None:
    """Leave in a job's folder why it failed, for the end of its sweep."""
    _write(folder / FAILURE, reason)


def _write(file: Path, text: str) -> None:
    try:
        atomic_write(file, text)
    except OSError as error:  # no job of the sweep could write there
        sys.exit(f"error: cannot write {file} ({error.strerror}): choose another output_dir")


def _outcomes(config: DictConfig) -> list[Path]:
    return list(Path(config.hydra.sweep.dir).rglob(OUTCOME))


def _print_table(outcomes: Sequence[Mapping]) -> None:
    from experiments.records.files import read
    from experiments.run.table import print_text

    shards: dict[tuple[str, ...], list[str]] = {}  # by their records, the overrides
    for outcome in outcomes:
        if paths := tuple(outcome["records"]):
            shards.setdefault(paths, outcome["overrides"])
    jobs: dict[tuple[str, ...], list[Mapping]] = defaultdict(list)
    for paths, overrides in shards.items():
        whole = tuple(word for word in overrides if not word.startswith(SHARD))
        jobs[whole] += [read(Path(path)) for path in paths]
    if len(shards) > 1:
        print_text(sweep_table(list(jobs.items())))


def sweep_table(jobs: Sequence[tuple[Sequence[str], Sequence[Mapping]]]) -> str:
    """Return a row for each job (its overrides, its records): the swept settings and the scores,
    means over identities with their 95 % intervals.
    """
    from tabulate import tabulate

    from experiments.records.files import natural
    from experiments.run.table import heading, mean

    overrides = [dict(word.split("=", 1) for word in words if "=" in word) for words, _ in jobs]
    keys = dict.fromkeys(key for settings in overrides for key in settings)
    swept = [key for key in keys if len({settings.get(key) for settings in overrides}) > 1]
    first = jobs[0][1]
    rows = []
    for settings, (_, records) in zip(overrides, jobs, strict=True):
        # resamples are by place: in this order shards have the intervals of one job
        records = sorted(records, key=lambda record: natural(record.identity))
        cells = [mean(records, arm, key) for arm, key in COLUMNS]
        rows.append([*(settings.get(key, "") for key in swept), str(len(records)), *cells])
    headings = [*swept, "identities", f"unprotected {heading(KEYS[0], first[0])}"]
    headings += [heading(key, first[0]) for key in KEYS]
    text = tabulate(rows, headings, disable_numparse=True)
    return f"{text}\nBut for one column the protected victim's scores; means [95 % interval]."
