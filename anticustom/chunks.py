"""As many images at once as the GPU's memory holds."""

import gc
from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")


class Chunks:
    """Applies functions to runs of rows: at first to all at once, and where memory runs out to half
    as many, from then on. Only for what treats each row alone, so that nothing changes.
    """

    def __init__(self) -> None:
        self.size: int | None = None  # rows at once; None: all

    def __call__(self, function: Callable[[slice], T], count: int) -> list[T]:
        """Return what `function` gives for runs of the `count` rows, in order.

        Raises torch.OutOfMemoryError where not even one row fits.
        """
        done, results = 0, []
        while done < count:
            rows = slice(done, min(count, done + (self.size or count)))
            try:
                results.append(function(rows))
                done = rows.stop
                continue
            except torch.OutOfMemoryError:
                tried = rows.stop - rows.start
                if tried == 1:
                    raise
                self.size = tried // 2
            gc.collect()  # what the failed attempt held
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        return results
