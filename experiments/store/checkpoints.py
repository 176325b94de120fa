"""Checkpoints of long work in a store's working folder."""

import hashlib
import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from experiments.store.disk import publish

CHECKPOINT = "checkpoint.safetensors"
PARTS = f".{CHECKPOINT}.parts"


@dataclass
class TimedCheckpoint:
    """A checkpoint in `folder` that is due every `minutes`, with the time that the work took."""

    folder: Path
    minutes: float
    started_at: float = field(default_factory=time.monotonic)
    saved_at: float = field(default_factory=time.monotonic)
    seconds_before: float = 0

    def load(self) -> tuple[dict[str, Tensor], dict] | None:
        """Return the tensors, on the CPU, and the facts saved last; None if absent or damaged."""
        try:
            with safe_open(self.folder / CHECKPOINT, "pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (FileNotFoundError, SafetensorError):
            return None
        text = metadata.get("facts", "")
        if metadata.get("sha256") != _digest(tensors, text):
            return None
        facts = json.loads(text)
        self.seconds_before = facts.pop("seconds")
        return tensors, facts

    def due(self) -> bool:
        """Return whether it is time to save again."""
        return time.monotonic() - self.saved_at >= 60 * self.minutes

    def save(self, tensors: Mapping[str, Tensor], facts: Mapping) -> None:
        """Replace the checkpoint; `facts` is anything that JSON can hold."""
        # The format refuses tensors that share memory: each is copied.
        tensors = {
            name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
            for name, tensor in tensors.items()
        }
        text = json.dumps({**facts, "seconds": self.seconds()})
        # safetensors writes under names of its own: the next save removes what a kill left of them.
        parts = self.folder / PARTS
        shutil.rmtree(parts, ignore_errors=True)
        parts.mkdir()
        metadata = {"facts": text, "sha256": _digest(tensors, text)}
        save_file(tensors, parts / CHECKPOINT, metadata)
        publish(parts / CHECKPOINT, self.folder / CHECKPOINT)
        parts.rmdir()
        self.saved_at = time.monotonic()

    def seconds(self) -> float:
        """Return the seconds of work so far, with those before a kill as far as they were saved."""
        return self.seconds_before + time.monotonic() - self.started_at


def _digest(tensors: Mapping[str, Tensor], facts: str) -> str:
    digest = hashlib.sha256(facts.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
