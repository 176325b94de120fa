"""The table that ends a sweep: a row for each of its jobs."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

KEYS = ("identity_retention", "ism", "ism_failures_as_0", "fdfr", "brisque")


class SweepTable(Callback):
    """Collects the records of a sweep's jobs and prints their protected victims' scores.

    Jobs that a launcher sends to other processes are not seen; their records are.
    """

    def __init__(self) -> None:
        self.jobs: list[tuple[list[str], list[Mapping]]] = []

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        if job_return.status is JobStatus.COMPLETED and job_return.return_value:
            from experiments import records

            read = [records.read(path) for path in job_return.return_value]
            self.jobs.append((list(job_return.overrides or []), read))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        if len(self.jobs) > 1:
            text = f"\n{sweep_table(self.jobs)}\n"
            encoding = sys.stdout.encoding or "utf-8"
            print(text.encode(encoding, "replace").decode(encoding))


def sweep_table(jobs: Sequence[tuple[Sequence[str], Sequence[Mapping]]]) -> str:
    """Return a row for each job (its overrides, its records): what was swept, and the scores of the
    protected victim, means over identities with their 95 % intervals.
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
            estimated(
                estimate([record["scores"]["protected"].get(key) for record in records]),
                key,
                records,
            )
            for key in KEYS
        ]
        rows.append([*(one.get(key, "") for key in swept), str(len(records)), *cells])
    headings = [*swept, "identities", *(heading(key, first[0]) for key in KEYS)]
    text = tabulate(rows, headings, disable_numparse=True)
    return f"{text}\nThe protected victim's scores; means over identities [95 % interval]."
