"""Checkpoints: by the clock, exact, and safe from damage and kills."""

import random
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import start_python

from experiments.store import checkpoints
from experiments.store.checkpoints import CHECKPOINT, PARTS, TimedCheckpoint

SAVER = """
import sys
from pathlib import Path
import torch
from experiments.store.checkpoints import TimedCheckpoint

checkpoint = TimedCheckpoint(Path(sys.argv[1]), 0)
loaded = checkpoint.load()
step = loaded[1]["step"] if loaded else 0
while True:
    step += 1
    checkpoint.save({"weights": torch.full((1 << 20,), float(step))}, {"step": step})
    print("saved", flush=True)
"""


@pytest.fixture
def clock(monkeypatch):
    """Seconds that go by only when told."""
    now = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: now.seconds)
    return now


@pytest.fixture
def checkpoint(tmp_path):
    return TimedCheckpoint(tmp_path, minutes=0)


def started(folder: Path, clock: SimpleNamespace) -> TimedCheckpoint:
    return TimedCheckpoint(folder, 5, started_at=clock.seconds, saved_at=clock.seconds)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


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


def test_tensors_and_facts_come_back_exactly(checkpoint, tmp_path):
    grid = torch.arange(12.0).reshape(3, 4)
    tensors = {
        "half": grid.to(torch.bfloat16),
        "turned": grid.t(),
        "row 0": grid[0],
        "row 1": grid[1],
        "count": torch.tensor(7),
        "state": torch.Generator().manual_seed(3).get_state(),
        "flag": torch.tensor([True, False]),
        "none": torch.zeros(0, 3),
    }
    facts = {"step": 3, "loss": [0.1, None], "names": {"é": "ü"}}
    checkpoint.save(tensors, facts)
    loaded, loaded_facts = checkpoint.load()
    assert loaded_facts == facts
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)
    checkpoint.save({"a": torch.zeros(1)}, {"step": 4})
    assert checkpoint.load()[1] == {"step": 4}
    assert names(tmp_path) == {CHECKPOINT}


def test_a_damaged_checkpoint_counts_as_absent(checkpoint, tmp_path):
    assert checkpoint.load() is None
    tensors, facts = {"a": torch.arange(6.0).reshape(2, 3)}, {"step": 3}
    checkpoint.save(tensors, facts)
    file = tmp_path / CHECKPOINT
    whole = file.read_bytes()
    for size in range(len(whole)):
        file.write_bytes(whole[:size])
        assert checkpoint.load() is None
    refused = 0
    for position in range(len(whole)):
        file.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        loaded = checkpoint.load()
        refused += loaded is None
        if loaded:  # a change in the padding or the order of keys is none in the values
            assert loaded[1] == facts
            assert torch.equal(loaded[0]["a"], tensors["a"])
    assert refused > 0.8 * len(whole)


def test_a_checkpoint_survives_kills_while_it_is_written(checkpoint, tmp_path):
    draw = random.Random(1)
    step = 0
    for _ in range(3):
        process = start_python(SAVER, tmp_path)
        process.stdout.readline()
        time.sleep(draw.uniform(0.05, 0.2))
        process.kill()
        process.communicate()
        loaded = checkpoint.load()
        if loaded:
            assert loaded[1]["step"] >= step
            step = loaded[1]["step"]
            assert torch.equal(loaded[0]["weights"], torch.full((1 << 20,), float(step)))
        assert names(tmp_path) <= {CHECKPOINT, PARTS}
        assert len(list(tmp_path.glob(f"{PARTS}/*"))) <= 1
    assert step > 0
    checkpoint.save({"weights": torch.zeros(1)}, {"step": step})
    assert names(tmp_path) == {CHECKPOINT}
