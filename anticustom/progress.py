"""How long work tells of itself and keeps its state; the methods know nothing of terminals or
folders.
"""

from typing import Protocol

from torch import Tensor


class Progress(Protocol):
    def __call__(self, what: str, done: int, total: int, loss: Tensor | None = None) -> None:
        """`done` of `total` steps of `what` are done; `loss` is the last step's, a scalar still on
        its device.
        """


class Checkpoint(Protocol):
    def load(self) -> tuple[dict[str, Tensor], dict] | None:
        """Return the tensors and facts saved last, or None."""

    def due(self) -> bool:
        """Is it time to save again?"""

    def save(self, tensors: dict[str, Tensor], facts: dict) -> None:
        """Save, replacing what was saved before; all or nothing."""


def silent(what: str, done: int, total: int, loss: Tensor | None = None) -> None:
    """The progress that nobody watches."""


class NoCheckpoint:
    """The checkpoint of work that starts over."""

    def load(self) -> None:
        return None

    def due(self) -> bool:
        return False

    def save(self, tensors: dict[str, Tensor], facts: dict) -> None:
        raise AssertionError("never due")
