"""Whole files or none, and one line where the disk is full or a folder forbidden."""

import errno
import os
import resource
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from experiments.store.artifacts import Store
from experiments.store.checkpoints import TimedCheckpoint
from experiments.store.disk import StoreError, atomic_write, check_writable


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """Let no file be larger than `size` bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_atomic_write_keeps_the_old_content_when_it_fails(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "record.json"
    assert atomic_write(path, "old") == path
    atomic_write(path, b"newer")
    assert path.read_text() == "newer"
    os.umask(umask := os.umask(0))
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        atomic_write(path, "newest")
    assert path.read_text() == "newer"
    assert names(path.parent) == {"record.json"}


def save_much(folder, checkpoint):
    (folder / "weights.bin").write_bytes(bytes(1 << 22))


def save_much_as_safetensors(folder, checkpoint):
    TimedCheckpoint(checkpoint, 0).save({"weights": torch.zeros(1 << 20)}, {})


@pytest.mark.parametrize("build", [save_much, save_much_as_safetensors])
def test_full_disk_is_one_clear_line_and_shows_nothing(tmp_path, build):
    with full_disk(1 << 20), pytest.raises(StoreError) as caught:
        Store(tmp_path).make("protect", "k", "ann", build, inputs={})
    message = str(caught.value)
    assert str(tmp_path) in message
    assert "free some space" in message
    assert "\n" not in message
    assert Store(tmp_path).find("protect", "k", "ann") is None
    assert Store(tmp_path).make("protect", "k", "ann", build, inputs={}).manifest


def test_forbidden_folder_is_one_clear_line(tmp_path):
    def forbidden(folder, checkpoint):
        raise PermissionError(errno.EACCES, "Permission denied", str(folder / "a.png"))

    def elsewhere(folder, checkpoint):
        raise PermissionError(errno.EACCES, "Permission denied", "/photos/a.png")

    with pytest.raises(StoreError, match=r"a\.png \(Permission denied\): choose an output_dir"):
        Store(tmp_path).make("protect", "k", "ann", forbidden, inputs={})
    with pytest.raises(PermissionError, match=r"/photos/a\.png"):
        Store(tmp_path).make("protect", "k", "ann", elsewhere, inputs={})


def test_check_writable_refuses_early_and_leaves_nothing(tmp_path, monkeypatch):
    check_writable(tmp_path / "not" / "yet" / "there")
    assert names(tmp_path) == set()
    (tmp_path / "file").touch()
    refusals = {
        tmp_path / "file" / "outputs": r"file.* choose another output_dir",
        Path("/dev/null"): r"/dev/null.* choose another output_dir",
        tmp_path / ("x" * 300): "name too long",
    }
    for folder, reason in refusals.items():
        with pytest.raises(StoreError, match=reason):
            check_writable(folder)
    with full_disk(20_000), pytest.raises(StoreError, match=r"too large.* choose another"):
        check_writable(tmp_path)

    def read_only(dir):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(dir))

    monkeypatch.setattr(tempfile, "TemporaryFile", read_only)
    with pytest.raises(StoreError, match=r"Read-only file system.* choose another"):
        check_writable(tmp_path)
    assert names(tmp_path) == {"file"}
