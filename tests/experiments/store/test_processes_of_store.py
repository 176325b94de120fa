"""The store under kills, and with several processes at once."""

import logging
import os
import random
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
from helpers import start_python

from experiments.store import artifacts
from experiments.store.artifacts import SMALL, Store

# A build of 120 checkpointed steps; each executed step leaves one byte in the journal.
BUILDER = """
import hashlib, json, signal, sys, time
from pathlib import Path
from experiments.store.disk import atomic_write
from experiments.store.artifacts import Store

signal.signal(signal.SIGINT, signal.default_int_handler)  # it may be started to ignore it
root, journal = Path(sys.argv[1]), Path(sys.argv[2])

def build(folder, checkpoint):
    state = checkpoint / "state.json"
    step, text = json.loads(state.read_text()) if state.exists() else (0, "")
    while step < 120:
        with journal.open("ab") as file:
            file.write(b".")
        with (folder / "half.bin").open("ab") as file:
            file.write(bytes(1 << 16))
        step, text = step + 1, hashlib.sha256(f"{text} {step}".encode()).hexdigest()
        time.sleep(0.004)
        atomic_write(state, json.dumps([step, text]))
    (folder / "half.bin").unlink(missing_ok=True)
    for i in range(8):
        (folder / f"{i}.png").write_bytes(f"{text} {i}".encode() * 20_000)
    return {"steps": step}

print(Store(root).make("protect", "k", "ann", build, inputs={}).digest)
"""

# Kill the process at its n-th change of the file system, for every n, then call once more.
CRASHER = """
import itertools, os, shutil, signal, sys
from pathlib import Path
from experiments.store.artifacts import Store

def build(folder, checkpoint):
    (folder / "sub").mkdir()
    (folder / "sub" / "a.png").write_bytes(b"a" * 1000)
    (folder / "b.png").write_bytes(b"b" * 1000)
    (checkpoint / "seen").touch()
    with Path(sys.argv[1], "builds").open("a") as file:
        file.write("x")

def builds():
    return Path(sys.argv[1], "builds").stat().st_size

def run(root, force):
    return Store(root, force=force).make("protect", "k", "ann", build, inputs={"eps": 8})

def crashed_at(n, root, force):
    child = os.fork()
    if child == 0:
        events = itertools.count(1)
        changes = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir"}
        sys.addaudithook(
            lambda event, _: event in changes and next(events) == n
            and os.kill(os.getpid(), signal.SIGKILL)
        )
        run(root, force)
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])

expected = run(Path(sys.argv[1]) / "undisturbed", []).digest
for force in ([], ["protect"]):
    for n in itertools.count(1):
        root = Path(sys.argv[1]) / f"{n}{'f' * bool(force)}"
        first = run(root, []).manifest["created_at"] if force else None
        before = builds()
        crashed = crashed_at(n, root, force)
        sealed = (root / "protect" / "k" / ".ann.work" / "files" / "manifest.json").exists()
        visible = Store(root).find("protect", "k", "ann")
        assert visible is None or visible.digest == expected, n
        again = run(root, force)
        assert again.digest == expected and again.manifest["created_at"] != first, n
        assert not sealed or builds() == before + 1, f"finished work was thrown away at {n}"
        run(root, [])
        left = {path.name for path in (root / "protect" / "k").iterdir()}
        assert left == {"ann", ".ann.lock"}, (n, left)
        shutil.rmtree(root)
        if not crashed:
            break
    print(n)
"""


def finished(process: subprocess.Popen) -> str:
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 0
    return output


def harmed_unseen(file: Path) -> None:
    """Change a byte and leave size and time as they were, as a failing disk may."""
    status, content = file.stat(), file.read_bytes()
    file.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_small_files_are_read_by_each_process_and_large_ones_if_their_time_changed(tmp_path):
    def build(folder, checkpoint):
        (folder / "small.png").write_bytes(bytes(SMALL))
        (folder / "large.safetensors").write_bytes(bytes(SMALL + 1))

    def made() -> Path:
        return Store(tmp_path).make("customize", "k", "ann", build, inputs={}).path

    def found_by_another_process() -> bool:
        code = "import sys; from experiments.store.artifacts import Store\n"
        code += "print(Store(sys.argv[1]).find('customize', 'k', 'ann') is not None)"
        return finished(start_python(code, tmp_path)).strip() == "True"

    path = made()
    harmed_unseen(path / "large.safetensors")
    assert found_by_another_process()
    harmed_unseen(path / "small.png")
    assert not found_by_another_process()
    harmed_unseen(made() / "large.safetensors")
    (path / "large.safetensors").touch()
    assert not found_by_another_process()
    assert {f.name for f in path.parent.glob("ann*")} == {"ann.damaged-1", "ann.damaged-2"}


def test_every_possible_moment_of_a_kill_leaves_a_state_that_goes_on(tmp_path):
    points = finished(start_python(CRASHER, tmp_path)).split()
    assert len(points) == 2
    assert all(int(n) > 15 for n in points)


def test_random_kills_cost_one_step_each_and_change_no_byte(tmp_path):
    undisturbed = finished(start_python(BUILDER, tmp_path / "undisturbed", tmp_path / "count"))
    draw = random.Random(0)
    root, journal = tmp_path / "store", tmp_path / "journal"
    kills = [signal.SIGKILL, signal.SIGTERM, signal.SIGINT] * 2
    for kill in kills:
        process = start_python(BUILDER, root, journal)
        steps = journal.stat().st_size if journal.exists() else 0
        while not journal.exists() or journal.stat().st_size == steps:  # it has begun to work
            time.sleep(0.005)
            assert process.poll() is None, "it ended before it was killed: kill earlier"
        time.sleep(draw.uniform(0, 0.06))
        process.send_signal(kill)
        process.communicate()
        assert process.returncode == -kill
        assert not (root / "protect" / "k" / "ann").exists()
    assert finished(start_python(BUILDER, root, journal)) == undisturbed
    assert 120 <= journal.stat().st_size <= 120 + len(kills)


def test_six_processes_make_one_artifact(tmp_path):
    builders = [start_python(BUILDER, tmp_path / "store", tmp_path / "journal") for _ in range(6)]
    assert len({finished(builder) for builder in builders}) == 1
    assert (tmp_path / "journal").stat().st_size == 120


def test_who_waits_says_for_whom_and_says_it_again(tmp_path, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(artifacts, "WAIT", 0.3)  # seconds
    holder = start_python(BUILDER, tmp_path / "store", tmp_path / "journal")
    while not (tmp_path / "journal").exists():
        time.sleep(0.01)
    holder.send_signal(signal.SIGSTOP)
    threading.Timer(1, holder.send_signal, [signal.SIGCONT]).start()
    made = Store(tmp_path / "store").make(
        "protect", "k", "ann", lambda *_: pytest.fail("made twice"), inputs={}
    )
    assert caplog.text.count(f"waiting for process {holder.pid} on ") >= 3
    assert f", which is making {made.path}" in caplog.text
    finished(holder)
