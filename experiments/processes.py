"""Commands of this project as processes of their own, several at a time."""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Command:
    """`python run.py` with `arguments` on a number of threads; its output is appended to `log`."""

    arguments: Sequence[str]
    threads: int
    log: Path

    def __call__(self) -> bool:
        """Run the command and return whether it succeeded."""
        environment = os.environ | {"OMP_NUM_THREADS": str(self.threads)}
        words = [sys.executable, "run.py", *self.arguments]
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("a") as file:
            ended = subprocess.run(words, stdout=file, stderr=file, env=environment, cwd=ROOT)
        return ended.returncode == 0


def outcomes(runs: Sequence[Command], processes: int) -> Iterator[bool]:
    """Run all, `processes` at a time, and yield in their order whether each succeeded.

    Once the caller's loop ends, as by an interrupt, no further run starts.
    """
    pool = ThreadPoolExecutor(processes)
    try:
        yield from pool.map(lambda run: run(), runs)
    finally:
        pool.shutdown(cancel_futures=True)


def usable_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
