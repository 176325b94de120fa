"""What a run says: its own lines and progress bars, and nothing of its libraries."""

import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor
from tqdm import tqdm


def quiet_libraries() -> None:
    """Silence what libraries print that concerns no user of this project; call it before importing
    them, which it does not, for that takes seconds.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else a warning about forks
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # bars while weights load
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    # the notice about a CPU kernel that it would fetch from the hub
    logging.getLogger("bitsandbytes").setLevel(logging.CRITICAL)


def say(line: str) -> None:
    """Print a line of the run's own, above any progress bar."""
    tqdm.write(line, file=sys.stdout)
    sys.stdout.flush()


class Bars:
    """Progress bars, one for each kind of work, with the last loss; silent when stderr is not a
    terminal.
    """

    def __init__(self):
        self.bars: dict[str, tqdm] = {}
        self.read_at = 0.0

    def __call__(self, what: str, done: int, total: int, loss: Tensor | None = None) -> None:
        if what not in self.bars:
            self.bars[what] = tqdm(
                desc=f"  {what}", total=total, initial=done - 1, disable=None, leave=False, ncols=88
            )
        bar = self.bars[what]
        # reading the loss waits for the device: at most twice a second
        if loss is not None and not bar.disable and time.monotonic() - self.read_at > 0.5:
            bar.set_postfix(loss=f"{float(loss):.3f}", refresh=False)
            self.read_at = time.monotonic()
        bar.update(done - bar.n)

    def close(self) -> None:
        for bar in self.bars.values():
            bar.close()


@contextmanager
def bars() -> Iterator[Bars]:
    """Give progress bars that are cleared at the end."""
    shown = Bars()
    try:
        yield shown
    finally:
        shown.close()
