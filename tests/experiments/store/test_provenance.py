"""What a manifest and a record say of versions, machine, digests and memory."""

import hashlib
import os
import platform
import subprocess

import pytest
import torch

from experiments.store import provenance
from experiments.store.provenance import (
    computed_on,
    digest_of_file,
    digest_of_files,
    digest_of_folder,
    files_in,
    git_state,
    highest,
    machine,
    peak_memory_bytes,
    reset_peak_memory,
    versions,
)


def git(folder, *arguments):
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_versions_name_the_packages_and_never_fail(monkeypatch):
    here = versions()
    assert torch.__version__.startswith(here["torch"])
    assert here["python"] == platform.python_version()
    monkeypatch.setattr(provenance, "PACKAGES", ("no-such-package",))
    assert versions.__wrapped__()["no-such-package"] is None


def test_git_state_is_commit_and_dirt(tmp_path, monkeypatch):
    assert git_state(tmp_path) is None
    (tmp_path / ".git").mkdir()
    assert git_state(tmp_path) is None
    git(tmp_path, "init", "-q")
    (tmp_path / "a.py").write_text("1")
    (tmp_path / ".gitignore").write_text("outputs")
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / "record.json").touch()
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    clean = git_state(tmp_path)
    monkeypatch.delenv("GIT_DIR")
    assert clean == {"commit": git(tmp_path, "rev-parse", "HEAD"), "dirty": False}
    for file in ("a.py", "new.py"):
        (tmp_path / file).write_text("2")
        assert git_state(tmp_path) == clean | {"dirty": True}
        git(tmp_path, "add", ".")
        git(tmp_path, "commit", "-qm", file)
        clean = git_state(tmp_path)


def test_machine_says_what_computed_and_not_where():
    facts = machine("cpu")
    assert facts["cores"] >= 1
    assert facts["torch_threads"] == torch.get_num_threads()
    assert facts["gpu"] is None
    assert platform.node() not in facts.values()


def test_a_gpu_computed_only_where_it_was_asked_to(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"card {device}")
    assert machine("cuda:1")["gpu"] == "card cuda:1"
    assert machine("cpu")["gpu"] is None


def test_peak_memory_is_a_high_water_mark():
    reset_peak_memory()
    before = peak_memory_bytes()["cpu"]
    block = b"x" * (before + (100 << 20))
    del block
    assert peak_memory_bytes()["cpu"] >= before + (100 << 20)


def test_the_highest_peak_is_over_all_that_have_one():
    peaks = [{"cpu": 5, "cuda": None}, {"cpu": 3, "cuda": 7}, {"cpu": 4, "cuda": 2}]
    assert highest(peaks) == {"cpu": 5, "cuda": 7}
    assert highest(peaks[:1]) == {"cpu": 5, "cuda": None}


def test_the_peak_of_a_gpu_is_since_it_was_reset():
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    block = torch.zeros(1 << 28, dtype=torch.uint8, device="cuda")
    assert peak_memory_bytes()["cuda"] >= 1 << 28
    del block
    reset_peak_memory()
    assert peak_memory_bytes()["cuda"] < 1 << 28


def test_file_digest_is_remembered_until_the_file_changes(tmp_path, monkeypatch):
    file = tmp_path / "weights.bin"
    file.write_bytes(b"weights")
    expected = hashlib.sha256(b"weights").hexdigest()
    assert digest_of_file(file) == expected

    with monkeypatch.context() as patch:
        patch.setattr(hashlib, "file_digest", None)  # it is not read again
        assert digest_of_file(file) == expected
    file.write_bytes(b"WEIGHTS")
    os.utime(file, ns=(1, 1))
    assert digest_of_file(file) == hashlib.sha256(b"WEIGHTS").hexdigest()


def test_folder_digest_follows_names_and_contents_but_not_the_place(tmp_path):
    def folder(name, files):
        for path, content in files.items():
            target = tmp_path / name / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(content)
        return digest_of_folder(tmp_path / name)

    first = folder("one", {"unet/a": "1", "b": "2"})
    aside = {".cache/stamp": "now", "README.md": "a card"}
    assert folder("two", {"b": "2", "unet/a": "1", **aside}) == first
    assert folder("three", {"unet/a": "1", "c": "2"}) != first
    assert folder("four", {"unet/a": "1", "b": "3"}) != first
    folder("five", {"unet/a": "1", "b": "2", "c": "3"})
    files = files_in(tmp_path / "five")
    assert digest_of_files({name: files[name] for name in ("unet/a", "b")}) == first
    with pytest.raises(NotADirectoryError, match="no such folder"):
        digest_of_folder(tmp_path / "nowhere")


def test_what_computes_is_told_apart_where_machines_have_one_name():
    here = machine("cpu")
    assert torch.backends.cpu.get_cpu_capability() in here["cpu_kind"]
    assert computed_on(here) == f"{here['cpu']}, {here['cpu_kind']}"
    assert computed_on(here | {"gpu": "Some Card"}) == "Some Card"
