"""Lines and progress bars of a run, without the words of its libraries."""

import logging
import os
import sys
import time
from contextlib import closing

from torch import Tensor
from tqdm import tqdm

BAR, LINE = 0.5, 30  # seconds between two losses of a bar, and between two lines in its place


def quiet_libraries() -> None:
    """Silence the messages of libraries that concern no user of this project.

    Call it before importing the libraries. It imports none of them, for that takes seconds.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else a warning about forks
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # bars while weights load
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    # the notice about a CPU kernel that it would fetch from the hub
    logging.getLogger("bitsandbytes").setLevel(logging.CRITICAL)
    # the notice of a first run that it lists the system's fonts
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)


def say(line: str) -> None:
    """Print a line of the run, above any progress bar."""
    tqdm.write(line, file=sys.stdout)
    sys.stdout.flush()


class Bars:
    """Progress bars with the last loss, one for each kind of work.

    Where stderr is not a terminal, a line is printed in their place every 30 seconds.
    """

    def __init__(self):
        self.bars: dict[str, tqdm] = {}
        self.shown_at = time.monotonic()

    def __call__(self, what: str, done: int, total: int, loss: Tensor | None = None) -> None:
        if what not in self.bars:
            self.bars[what] = tqdm(
                desc=f"  {what}", total=total, initial=done - 1, disable=None, leave=False, ncols=88
            )
        bar = self.bars[what]
        # Reading the loss waits for the device: not at every step.
        if time.monotonic() - self.shown_at >= (LINE if bar.disable else BAR):
            self.shown_at = time.monotonic()
            value = "" if loss is None else f"loss {float(loss):.3f}"
            if bar.disable:
                say(f"  {what} {done} of {total}" + (value and f", {value}"))
            else:
                bar.set_postfix_str(value, refresh=False)
        bar.update(done - bar.n)

    def close(self) -> None:
        for bar in self.bars.values():
            bar.close()


def bars() -> closing[Bars]:
    """Return a context that gives progress bars and clears them at the end."""
    return closing(Bars())
