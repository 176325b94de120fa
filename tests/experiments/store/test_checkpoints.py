"""Checkpoints by the clock."""

from types import SimpleNamespace

import pytest
import torch

from experiments.store import checkpoints
from experiments.store.checkpoints import TimedCheckpoint


@pytest.fixture
def clock(monkeypatch):
    """Seconds that go by only when told."""
    now = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: now.seconds)
    return now


def started(folder, clock) -> TimedCheckpoint:
    return TimedCheckpoint(folder, 5, started_at=clock.seconds, saved_at=clock.seconds)


def test_a_checkpoint_is_due_every_so_many_minutes(clock, tmp_path):
    checkpoint = started(tmp_path, clock)
    due = []
    for second in range(100, 1400, 100):
        clock.seconds = second
        if checkpoint.due():
            due.append(second)
            checkpoint.save({}, {})
    assert due == [400, 700, 1000, 1300]


def test_work_that_goes_on_counts_what_it_took_before(clock, tmp_path):
    first = started(tmp_path, clock)
    clock.seconds += 40
    first.save({"weight": torch.ones(2)}, {"step": 3})
    clock.seconds += 500  # lost
    second = started(tmp_path, clock)
    tensors, facts = second.load()
    clock.seconds += 7
    assert facts == {"step": 3}
    assert torch.equal(tensors["weight"], torch.ones(2))
    assert second.seconds() == 47
