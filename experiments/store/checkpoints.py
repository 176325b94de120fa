"""Checkpoints of long work in a store's working folder."""

import time
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from experiments.store.disk import load_checkpoint, save_checkpoint


@dataclass
class TimedCheckpoint:
    """A checkpoint in `folder` that is due every `minutes`; it also keeps how long the work took
    so far.
    """

    folder: Path
    minutes: float
    started_at: float = field(default_factory=time.monotonic)
    saved_at: float = field(default_factory=time.monotonic)
    seconds_before: float = 0

    def load(self) -> tuple[dict[str, Tensor], dict] | None:
        saved = load_checkpoint(self.folder)
        if saved:
            self.seconds_before = saved[1].pop("seconds")
        return saved

    def due(self) -> bool:
        return time.monotonic() - self.saved_at >= 60 * self.minutes

    def save(self, tensors: dict[str, Tensor], facts: dict) -> None:
        save_checkpoint(self.folder, tensors, facts | {"seconds": self.seconds()})
        self.saved_at = time.monotonic()

    def seconds(self) -> float:
        """Return the seconds of work so far, those before a kill included as far as they were
        saved.
        """
        return self.seconds_before + time.monotonic() - self.started_at
