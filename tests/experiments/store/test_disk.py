import os
import random
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from experiments.store.artifacts import Store
from experiments.store.disk import (
    CHECKPOINT,
    PARTS,
    StoreError,
    atomic_write,
    check_writable,
    load_checkpoint,
    save_checkpoint,
)

PROJECT = Path(__file__).resolve().parents[3]
SAVER = """
import sys
from pathlib import Path
import torch
from experiments.store.disk import load_checkpoint, save_checkpoint

folder = Path(sys.argv[1])
loaded = load_checkpoint(folder)
step = loaded[1]["step"] if loaded else 0
while True:
    step += 1
    save_checkpoint(folder, {"weights": torch.full((1 << 20,), float(step))}, {"step": step})
    print("saved", flush=True)
"""


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_checkpoint_returns_tensors_and_facts_exactly(tmp_path):
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
    save_checkpoint(tmp_path, tensors, facts)
    loaded, loaded_facts = load_checkpoint(tmp_path)
    assert loaded_facts == facts
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)
    save_checkpoint(tmp_path, {"a": torch.zeros(1)}, {"step": 4})
    assert load_checkpoint(tmp_path)[1] == {"step": 4}
    assert names(tmp_path) == {CHECKPOINT}


def test_damaged_checkpoint_counts_as_absent(tmp_path):
    assert load_checkpoint(tmp_path) is None
    tensors, facts = {"a": torch.arange(6.0).reshape(2, 3)}, {"step": 3}
    save_checkpoint(tmp_path, tensors, facts)
    file = tmp_path / CHECKPOINT
    whole = file.read_bytes()
    for size in range(len(whole)):
        file.write_bytes(whole[:size])
        assert load_checkpoint(tmp_path) is None
    refused = 0
    for position in range(len(whole)):
        file.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        loaded = load_checkpoint(tmp_path)
        refused += loaded is None
        if loaded:  # a change in the padding or the order of keys is none in the values
            assert loaded[1] == facts
            assert torch.equal(loaded[0]["a"], tensors["a"])
    assert refused > 0.8 * len(whole)


def test_checkpoint_survives_kills_while_it_is_written(tmp_path):
    draw = random.Random(1)
    step = 0
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", SAVER, str(tmp_path)],
            cwd=PROJECT,
            stdout=subprocess.PIPE,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        process.stdout.readline()
        time.sleep(draw.uniform(0.05, 0.2))
        process.kill()
        process.communicate()
        loaded = load_checkpoint(tmp_path)
        if loaded:
            assert loaded[1]["step"] >= step
            step = loaded[1]["step"]
            assert torch.equal(loaded[0]["weights"], torch.full((1 << 20,), float(step)))
        assert names(tmp_path) <= {CHECKPOINT, PARTS}
        assert len(list(tmp_path.glob(f"{PARTS}/*"))) <= 1
    assert step > 0
    save_checkpoint(tmp_path, {"weights": torch.zeros(1)}, {"step": step})
    assert names(tmp_path) == {CHECKPOINT}


def test_atomic_write_keeps_the_old_content_when_it_fails(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "record.json"
    assert atomic_write(path, "old") == path
    atomic_write(path, b"newer")
    assert path.read_text() == "newer"
    assert path.stat().st_mode & 0o777 == 0o666 & ~current_umask()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        atomic_write(path, "newest")
    assert path.read_text() == "newer"
    assert names(path.parent) == {"record.json"}


def current_umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def save_much(folder, checkpoint):
    (folder / "weights.bin").write_bytes(bytes(1 << 22))


def save_much_as_safetensors(folder, checkpoint):
    save_checkpoint(checkpoint, {"weights": torch.zeros(1 << 20)}, {})


@pytest.mark.parametrize("build", [save_much, save_much_as_safetensors])
def test_full_disk_is_one_clear_line_and_shows_nothing(tmp_path, build):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    try:
        with pytest.raises(StoreError) as caught:
            Store(tmp_path).make("protect", "k", "ann", build, inputs={})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    message = str(caught.value)
    assert str(tmp_path) in message
    assert "free some space" in message
    assert "\n" not in message
    assert Store(tmp_path).find("protect", "k", "ann") is None
    assert Store(tmp_path).make("protect", "k", "ann", build, inputs={}).manifest


def test_forbidden_folder_is_one_clear_line(tmp_path):
    def forbidden(folder, checkpoint):
        raise PermissionError(13, "Permission denied", str(folder / "a.png"))

    def elsewhere(folder, checkpoint):
        raise PermissionError(13, "Permission denied", "/photos/a.png")

    with pytest.raises(StoreError, match=r"a\.png \(Permission denied\): choose an output_dir"):
        Store(tmp_path).make("protect", "k", "ann", forbidden, inputs={})
    with pytest.raises(PermissionError, match=r"/photos/a\.png"):
        Store(tmp_path).make("protect", "k", "ann", elsewhere, inputs={})


def test_check_writable_refuses_early_and_leaves_nothing(tmp_path):
    check_writable(tmp_path / "not" / "yet" / "there")
    assert names(tmp_path) == set()
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"file.* choose another output_dir"):
        check_writable(tmp_path / "file" / "outputs")
    with pytest.raises(StoreError, match="name too long"):
        check_writable(tmp_path / ("x" * 300))
