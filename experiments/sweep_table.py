"""The table that ends a sweep: a row for each of its jobs."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

KEYS = ("identity_retention", "ism", "ism_failures_as_0", "fdfr", "brisque")
COLUMNS = [("unprotected", KEYS[0]), *(("protected", key) for key in KEYS)]


class SweepTable(Callback):
    """Collects the records of a sweep's jobs and prints their protected victims' scores.

    Of jobs that came to the same records only the first is shown. A sweep with jobs that failed
    ends with 1. Jobs that a launcher sends to other processes are not seen; their records are.
    """

    def __init__(self) -> None:
        self.failed: list[str] = []
        self.jobs: dict[tuple[Path, ...], tuple[list[str], list[Mapping]]] = {}

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        if job_return.status is not JobStatus.COMPLETED:
            return
        if job_return.return_value is None:
            self.failed.append(" ".join(job_return.overrides or []))
        elif job_return.return_value:
            from experiments import records

            paths = tuple(job_return.return_value)
            read = [records.read(path) for path in paths]
            self.jobs.setdefault(paths, (list(job_return.overrides or []), read))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        if len(self.jobs) > 1:
            text = f"\n{sweep_table(list(self.jobs.values()))}\n"
            encoding = sys.stdout.encoding or "utf-8"
            print(text.encode(encoding, "replace").decode(encoding))
        if self.failed:
            jobs = "; ".join(self.failed)
            sys.exit(
                f"error: jobs failed, for the reasons above: {jobs}. Run the sweep again for them"
            )


def sweep_table(jobs: Sequence[tuple[Sequence[str], Sequence[Mapping]]]) -> str:
    """Return a row for each job (its overrides, its records): what was swept, the unprotected
    victim's retention, and the protected victim's scores, means over identities with their 95 %
    intervals.
    """
    from tabulate import tabulate

    from eval.statistics import estimate
    from experiments.tables import estimated, heading

    overrides = [dict(word.split("=", 1) for word in words if "=" in word) for words, _ in jobs]
    keys = dict.fromkeys(key for one in overrides for key in one)
    swept = [key for key in keys if len({one.get(key) for one in overrides}) > 1]
    first = jobs[0][1]
    rows = []
    for one, (_, records) in zip(overrides, jobs, strict=True):
        cells = [
            estimated(estimate([r["scores"][arm].get(key) for r in records]), key, records)
            for arm, key in COLUMNS
        ]
        rows.append([*(one.get(key, "") for key in swept), str(len(records)), *cells])
    headings = [*swept, "identities", f"unprotected {heading(KEYS[0], first[0])}"]
    headings += [heading(key, first[0]) for key in KEYS]
    text = tabulate(rows, headings, disable_numparse=True)
    return f"{text}\nBut for one column the protected victim's scores; means [95 % interval]."
