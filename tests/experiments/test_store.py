import hashlib
import json
import logging
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.store import SMALL, Store, key_of, safe_name

PROJECT = Path(__file__).resolve().parents[2]

# A build of 120 checkpointed steps; each executed step leaves one byte in the journal.
BUILDER = """
import hashlib, json, sys, time
from pathlib import Path
from experiments.disk import atomic_write
from experiments.store import Store

root, journal, force = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]

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

print(Store(root, force=force).make("protect", "k", "ann", build, inputs={}).digest)
"""

# Kill the process at its n-th change of the file system, for every n, then call once more.
CRASHER = """
import itertools, os, shutil, signal, sys
from pathlib import Path
from experiments.store import Store

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


def start(code: str, *arguments: object) -> subprocess.Popen:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True)


def finished(process: subprocess.Popen) -> str:
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 0
    return output


def write_two(folder, checkpoint):
    (folder / "sub").mkdir()
    (folder / "sub" / "b.png").write_bytes(b"second")
    (folder / "a.png").write_bytes(b"first")
    return {"seconds": 1.5}


def edited(manifest: Path) -> None:
    manifest.write_text(manifest.read_text().replace('"seconds": 1.5', '"seconds": 1.4'))


def replaced(file: Path) -> Path:
    file.unlink()
    return file


def refuse(folder, checkpoint):
    raise AssertionError("built although the artifact was there")


def test_key_is_that_of_the_values():
    key = key_of("protect", 1, {"eps": 8, "names": ["a"], "deep": {"x": None, "y": True}})
    assert key == key_of(
        "protect", 1, {"deep": {"y": True, "x": None}, "names": ("a",), "eps": 8.0}
    )
    assert len(key) == 16
    assert set(key) <= set("0123456789abcdef")
    others = [
        key_of("protect", 2, {"eps": 8}),
        key_of("customize", 1, {"eps": 8}),
        key_of("protect", 1, {"eps": 8.5}),
        key_of("protect", 1, {"eps": "8"}),
        key_of("protect", 1, {"eps": True}),
        key_of("protect", 1, {"eps": 1}),
    ]
    assert len({key, *others}) == 7


@pytest.mark.parametrize("value", [float("nan"), float("inf"), Path("x"), {1: 2}, {"a", "b"}])
def test_key_refuses_what_json_cannot_hold_and_names_the_place(value):
    with pytest.raises(ValueError, match=r"protect\.attack\.eps\[1\]"):
        key_of("protect", 1, {"attack": {"eps": [0, value]}})


def test_safe_names_are_one_to_one_file_names(tmp_path):
    names = ["ann", "Ann", ".ann", "a/b", "a%2Fb", "a\\b", "..", ".", "Zoë", "名", "x y", "\udcff"]
    names += ["long" * 200, "long" * 201, "a\nb", "a:b", "-", "%"]
    safe = [safe_name(name) for name in names]
    assert len(set(safe)) == len(names)
    for name in safe:
        assert not name.startswith(".")
        assert "/" not in name
        (tmp_path / f".{name}.damaged-1").mkdir()
    assert safe_name("n000050") == "n000050"
    with pytest.raises(ValueError, match="empty name"):
        safe_name("")


def test_make_builds_once_and_tells_what_it_made(tmp_path):
    store = Store(tmp_path)
    assert store.find("protect", "k", "a/b") is None
    made = store.make("protect", "k", "a/b", write_two, inputs={"eps": 8.0})
    assert [path.relative_to(made.path).as_posix() for path in made.files] == ["a.png", "sub/b.png"]
    assert made.files[0].read_bytes() == b"first"
    assert made.manifest["inputs"] == {"eps": 8}
    assert made.manifest["facts"] == {"seconds": 1.5}
    assert made.manifest["unit"] == "a/b"
    assert made.manifest["files"]["a.png"]["sha256"] == hashlib.sha256(b"first").hexdigest()
    assert made.manifest["versions"]["torch"]
    again = Store(tmp_path).make("protect", "k", "a/b", refuse, inputs={})
    assert again == made == store.find("protect", "k", "a/b")
    assert store.find("protect", "other", "a/b") is None


def test_digest_follows_content_and_names_only(tmp_path):
    def build_as(name, content):
        return lambda folder, checkpoint: (folder / name).write_bytes(content) and {"t": name}

    digests = [
        Store(tmp_path).make("s", str(i), "u", build_as(*args), inputs={}).digest
        for i, args in enumerate([("a", b"x"), ("a", b"x"), ("b", b"x"), ("a", b"y")])
    ]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (lambda p: (p / "a.png").write_bytes(b"FIRST"), "content of a.png has changed"),
        (lambda p: (p / "a.png").write_bytes(b"fi"), "a.png has 2 bytes instead of 5"),
        (lambda p: (p / "sub" / "b.png").unlink(), "b.png is missing"),
        (lambda p: (p / "manifest.json").write_text("{"), "manifest.json is not readable"),
        (lambda p: (p / "manifest.json").write_text("[]"), "manifest.json is not readable"),
        (lambda p: (p / "manifest.json").unlink(), "manifest.json is missing"),
        (lambda p: edited(p / "manifest.json"), "content of manifest.json has changed"),
        (lambda p: replaced(p / "a.png").symlink_to("a.png"), "a.png is a link to itself"),
        (lambda p: replaced(p / "a.png").symlink_to("nowhere"), "a.png is missing"),
        (lambda p: replaced(p / "manifest.json").mkdir(), "manifest.json is not readable"),
    ],
)
def test_damaged_artifact_is_set_aside_and_made_again(tmp_path, caplog, harm, reason):
    store = Store(tmp_path)
    path = store.make("protect", "k", "ann", write_two, inputs={}).path
    for n in (1, 2):
        harm(path)
        assert store.make("protect", "k", "ann", write_two, inputs={}).files[0].read_bytes()
        assert path.with_name(f"ann.damaged-{n}").is_dir()
    assert reason in caplog.text
    assert Store(tmp_path).find("protect", "k", "ann").files[0].read_bytes() == b"first"


def harmed_unseen(file: Path) -> None:
    """Change a byte and leave size and time as they were, as a failing disk may."""
    status, content = file.stat(), file.read_bytes()
    file.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_small_files_are_read_by_each_process_and_large_ones_if_their_time_changed(tmp_path):
    def build(folder, checkpoint):
        (folder / "small.png").write_bytes(bytes(SMALL))
        (folder / "large.safetensors").write_bytes(bytes(SMALL + 1))

    def found_by_another_process() -> bool:
        code = "import sys; from experiments.store import Store\n"
        code += "print(Store(sys.argv[1]).find('customize', 'k', 'ann') is not None)"
        return finished(start(code, tmp_path)).strip() == "True"

    path = Store(tmp_path).make("customize", "k", "ann", build, inputs={}).path
    harmed_unseen(path / "large.safetensors")
    assert found_by_another_process()
    harmed_unseen(path / "small.png")
    assert not found_by_another_process()
    assert path.with_name("ann.damaged-1").is_dir()


def test_foreign_artifact_is_not_taken_for_ones_own(tmp_path, caplog):
    store = Store(tmp_path)
    bob = store.make("protect", "k", "bob", write_two, inputs={}).path
    bob.rename(bob.with_name("ann"))
    assert store.find("protect", "k", "ann") is None
    assert "manifest is that of protect/k/bob" in caplog.text


def test_touched_or_copied_files_are_as_good_and_other_files_do_not_count(tmp_path):
    store = Store(tmp_path)
    made = store.make("protect", "k", "ann", write_two, inputs={})
    os.utime(made.files[0], (1, 1))
    (made.path / ".DS_Store").touch()
    assert store.make("protect", "k", "ann", refuse, inputs={}).files == made.files


def test_failed_build_shows_nothing_and_keeps_its_checkpoint_but_not_its_files(tmp_path):
    store = Store(tmp_path)

    def fail(folder, checkpoint):
        (folder / "half.png").touch()
        (checkpoint / "state").write_text("12 steps")
        raise RuntimeError("out of luck")

    def resume(folder, checkpoint):
        assert not list(folder.iterdir())
        (folder / "a.png").write_text((checkpoint / "state").read_text())

    with pytest.raises(RuntimeError, match="out of luck"):
        store.make("protect", "k", "ann", fail, inputs={})
    assert store.find("protect", "k", "ann") is None
    made = store.make("protect", "k", "ann", resume, inputs={})
    assert [(path.name, path.read_text()) for path in made.files] == [("a.png", "12 steps")]
    assert {path.name for path in made.path.parent.iterdir()} == {"ann", ".ann.lock"}


def test_force_makes_anew_once_per_store_and_only_the_stages_named(tmp_path):
    first = Store(tmp_path).make("protect", "k", "ann", write_two, inputs={})
    forcing = Store(tmp_path, force=["protect"])
    second = forcing.make("protect", "k", "ann", write_two, inputs={})
    assert second.manifest["created_at"] > first.manifest["created_at"]
    assert forcing.make("protect", "k", "ann", refuse, inputs={}) == second
    other = Store(tmp_path, force=["customize"])
    assert other.make("protect", "k", "ann", refuse, inputs={}) == second


def test_stores_that_share_what_is_renewed_make_it_anew_once(tmp_path):
    renewed = set()
    first = Store(tmp_path, ["protect"], renewed).make("protect", "k", "ann", write_two, inputs={})
    again = Store(tmp_path, ["protect"], renewed)
    assert not again.makes_anew("protect", "k", "ann")
    assert again.make("protect", "k", "ann", refuse, inputs={}) == first
    assert again.makes_anew("protect", "k", "bob")
    assert Store(tmp_path, ["protect"]).makes_anew("protect", "k", "ann")


def test_force_starts_over_and_then_goes_on_from_its_own_checkpoint(tmp_path):
    seen = []

    def fail(folder, checkpoint):
        seen.append(len(list(checkpoint.iterdir())))
        (checkpoint / str(len(seen))).touch()
        raise RuntimeError("stop")

    for force in ([], [], ["protect"], ["protect"]):
        with pytest.raises(RuntimeError, match="stop"):
            Store(tmp_path, force).make("protect", "k", "ann", fail, inputs={})
    assert seen == [0, 1, 0, 1]


def test_every_possible_moment_of_a_kill_leaves_a_state_that_goes_on(tmp_path):
    points = finished(start(CRASHER, tmp_path)).split()
    assert len(points) == 2
    assert all(int(n) > 15 for n in points)


def test_random_kills_cost_one_step_each_and_change_no_byte(tmp_path):
    undisturbed = finished(start(BUILDER, tmp_path / "undisturbed", tmp_path / "count"))
    draw = random.Random(0)
    root, journal, kills = tmp_path / "store", tmp_path / "journal", 0
    while kills < 6:
        process = start(BUILDER, root, journal)
        steps = journal.stat().st_size if journal.exists() else 0
        while not journal.exists() or journal.stat().st_size == steps:  # it has begun to work
            time.sleep(0.005)
            assert process.poll() is None, "it ended before it was killed: kill earlier"
        time.sleep(draw.uniform(0, 0.06))
        process.kill()
        process.communicate()
        kills += process.returncode == -9
        assert not (root / "protect" / "k" / "ann").exists()
    assert finished(start(BUILDER, root, journal)) == undisturbed
    assert 120 <= journal.stat().st_size <= 120 + kills


def test_two_processes_make_one_artifact(tmp_path):
    pair = [start(BUILDER, tmp_path / "store", tmp_path / "journal") for _ in range(2)]
    first, second = map(finished, pair)
    assert first == second
    assert (tmp_path / "journal").stat().st_size == 120


def test_waiting_is_announced(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    other = start(BUILDER, tmp_path / "store", tmp_path / "journal")
    while not (tmp_path / "journal").exists():
        time.sleep(0.01)
    Store(tmp_path / "store").make("protect", "k", "ann", refuse, inputs={})
    assert caplog.text.count("waiting for another process") == 1
    finished(other)


def test_manifest_is_plain_json(tmp_path):
    path = Store(tmp_path).make("protect", "k", "ann", write_two, inputs={}).path
    manifest = json.loads((path / "manifest.json").read_text())
    assert list(manifest)[:5] == ["stage", "key", "unit", "inputs", "facts"]


def test_a_dangling_link_in_the_place_of_an_artifact_is_set_aside(tmp_path, caplog):
    store = Store(tmp_path)
    path = store.make("protect", "k", "ann", write_two, inputs={}).path
    path.rename(tmp_path / "moved")
    path.symlink_to(tmp_path / "nowhere")
    assert store.make("protect", "k", "ann", write_two, inputs={}).files[0].read_bytes() == b"first"
    assert path.is_dir()
    assert not path.is_symlink()
    assert "manifest.json is missing" in caplog.text
