"""Artifacts: their keys, making and finding them, and what happens to damaged ones."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import resealed

from experiments.store import artifacts
from experiments.store.artifacts import Store, digest_of, key_of, safe_name

PLACE = ("protect", "k", "ann")


def write_two(folder, checkpoint):
    (folder / "sub").mkdir()
    (folder / "sub" / "b.png").write_bytes(b"second")
    (folder / "a.png").write_bytes(b"first")
    return {"seconds": 1.5}


def fail(folder, checkpoint):
    (folder / "half.png").touch()
    (checkpoint / "state").write_text("12 steps")
    raise RuntimeError("out of luck")


def refuse(folder, checkpoint):
    raise AssertionError("built although the artifact was there")


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path)


@pytest.fixture
def made(store):
    return store.make(*PLACE, write_two, inputs={"eps": 8.0})


def test_key_is_that_of_the_values(monkeypatch):
    inputs = {"eps": 8, "names": ["a"], "deep": {"x": None, "y": True}}
    key = key_of("protect", 1, inputs)
    assert key == key_of(
        "protect", 1, {"deep": {"y": True, "x": None}, "names": ("a",), "eps": 8.0}
    )
    assert len(key) == 16
    assert set(key) <= set("0123456789abcdef")
    others = [
        key_of("protect", 2, {"eps": 8}),
        key_of("customize", 1, {"eps": 8}),
        *(key_of("protect", 1, {"eps": eps}) for eps in (8.5, "8", True, 1)),
    ]
    assert len({key, *others}) == 7
    digest = digest_of("setting", 1, inputs)
    monkeypatch.setattr(artifacts, "FORMAT", 3)
    assert key_of("protect", 1, inputs) != key
    assert digest_of("setting", 1, inputs) == digest == "2d8e0e35e3831ff6"  # records hold it


@pytest.mark.parametrize("value", [float("nan"), float("inf"), Path("x"), {1: 2}, {"a", "b"}])
@pytest.mark.parametrize("hashed", [key_of, digest_of])
def test_key_refuses_what_json_cannot_hold_and_names_the_place(hashed, value):
    with pytest.raises(ValueError, match=r"protect\.attack\.eps\[1\]"):
        hashed("protect", 1, {"attack": {"eps": [0, value]}})


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


def test_make_builds_once_and_tells_what_it_made(tmp_path, store):
    place = ("protect", "k", "a/b")
    assert store.find(*place) is None
    made = store.make(*place, write_two, inputs={"eps": 8.0})
    assert [path.relative_to(made.path).as_posix() for path in made.files] == ["a.png", "sub/b.png"]
    assert made.path.parent == tmp_path / "protect" / "k"
    assert made.files[0].read_bytes() == b"first"
    assert made.manifest["inputs"] == {"eps": 8}
    assert made.manifest["facts"] == {"seconds": 1.5}
    assert made.manifest["unit"] == "a/b"
    assert made.manifest["files"]["a.png"]["sha256"] == hashlib.sha256(b"first").hexdigest()
    assert made.manifest["versions"]["torch"]
    plain = json.loads((made.path / "manifest.json").read_text())
    assert list(plain)[:5] == ["stage", "key", "unit", "inputs", "facts"]
    again = Store(tmp_path).make(*place, refuse, inputs={})
    assert again == made == store.find(*place)
    assert store.find("protect", "other", "a/b") is None


def test_digest_follows_content_and_names_only(store):
    def build_as(name, content):
        return lambda folder, checkpoint: (folder / name).write_bytes(content) and {"t": name}

    digests = [
        store.make("s", str(i), "u", build_as(*args), inputs={}).digest
        for i, args in enumerate([("a", b"x"), ("a", b"x"), ("b", b"x"), ("a", b"y")])
    ]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def removed(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def folder(path: Path) -> None:
    removed(path)
    path.mkdir()


def content(data: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        removed(path)
        path.write_bytes(data)

    return write


def link(target: str) -> Callable[[Path], None]:
    def put(path: Path) -> None:
        removed(path)
        path.symlink_to(target)

    return put


def edited(manifest: Path) -> None:
    manifest.write_text(manifest.read_text().replace('"seconds": 1.5', '"seconds": 1.4'))


def unsealed(manifest: Path) -> None:
    manifest.write_text(re.sub(r',\s*"seal": "\w+"', "", manifest.read_text()))
    assert json.loads(manifest.read_text())["versions"]


def with_a_file_outside(manifest: Path) -> None:
    resealed(manifest, lambda entries: entries["files"].update({"../ann/a.png": {}}))


def without_files(manifest: Path) -> None:
    resealed(manifest, lambda entries: entries.pop("files"))


@pytest.mark.parametrize(
    ("place", "harm", "reason"),
    [
        ("a.png", content(b"FIRST"), "the content of a.png has changed"),
        ("a.png", content(b"fi"), "a.png has 2 bytes instead of 5"),
        ("sub/b.png", removed, "b.png: No such file"),
        ("a.png", folder, "a.png has .* bytes instead of 5"),
        ("a.png", link("a.png"), "a.png: Too many levels of symbolic links"),
        ("a.png", link("nowhere"), "a.png: No such file"),
        ("manifest.json", removed, "manifest.json: No such file"),
        ("manifest.json", content(b""), "manifest.json is not readable"),
        ("manifest.json", content(b"{"), "manifest.json is not readable"),
        ("manifest.json", content(b"\xff\x00"), "manifest.json is not readable"),
        ("manifest.json", content(b"[]"), "the content of manifest.json has changed"),
        ("manifest.json", folder, "manifest.json: Is a directory"),
        ("manifest.json", edited, "the content of manifest.json has changed"),
        ("manifest.json", unsealed, "the content of manifest.json has changed"),
        ("manifest.json", with_a_file_outside, "ann/a.png is outside its folder"),
        ("manifest.json", without_files, "manifest.json is not readable"),
        ("", link("nowhere"), "manifest.json: No such file"),
        ("", link("ann"), "manifest.json: Too many levels of symbolic links"),
        ("", content(b"text"), "manifest.json: Not a directory"),
    ],
)
def test_damaged_artifact_is_set_aside_and_made_again(store, made, caplog, place, harm, reason):
    for n in (1, 2):
        harm(made.path / place)
        assert store.make(*PLACE, write_two, inputs={}).files[0].read_bytes() == b"first"
        assert os.path.lexists(made.path.with_name(f"ann.damaged-{n}"))
    assert len(re.findall(reason, caplog.text)) == 2
    assert store.find(*PLACE).files[0].read_bytes() == b"first"


def test_foreign_artifact_is_not_taken_for_ones_own(store, made, caplog):
    made.path.rename(made.path.with_name("bob"))
    assert store.find("protect", "k", "bob") is None
    assert "manifest is that of protect/k/ann" in caplog.text


def test_touched_or_copied_files_are_as_good_and_other_files_do_not_count(store, made):
    os.utime(made.files[0], (1, 1))
    (made.path / ".DS_Store").touch()
    assert store.make(*PLACE, refuse, inputs={}).files == made.files


def test_failed_build_shows_nothing_and_keeps_its_checkpoint_but_not_its_files(store):
    def resume(folder, checkpoint):
        assert not list(folder.iterdir())
        (folder / "a.png").write_text((checkpoint / "state").read_text())

    with pytest.raises(RuntimeError, match="out of luck"):
        store.make(*PLACE, fail, inputs={})
    assert store.find(*PLACE) is None
    made = store.make(*PLACE, resume, inputs={})
    assert [(path.name, path.read_text()) for path in made.files] == [("a.png", "12 steps")]
    assert {path.name for path in made.path.parent.iterdir()} == {"ann", ".ann.lock"}


def test_links_in_the_place_of_lock_and_work_touch_nothing_that_they_name(tmp_path):
    precious = tmp_path / "precious"
    for name in ("files", "checkpoint", "replaced"):
        (precious / name).mkdir(parents=True)
        (precious / name / "photo.png").write_bytes(b"precious")
    before = {path: path.is_file() and path.read_bytes() for path in precious.rglob("*")}
    place = tmp_path / "store" / "protect" / "k"
    place.mkdir(parents=True)
    (place / ".ann.work").symlink_to(precious)
    (place / ".ann.lock").symlink_to(precious / "files" / "photo.png")
    made = Store(tmp_path / "store").make(*PLACE, write_two, inputs={})
    assert [file.read_bytes() for file in made.files] == [b"first", b"second"]
    assert {path: path.is_file() and path.read_bytes() for path in precious.rglob("*")} == before


def test_force_makes_anew_once_per_store_and_only_the_stages_named(tmp_path, made):
    forcing = Store(tmp_path, force=["protect"])
    second = forcing.make(*PLACE, write_two, inputs={})
    assert second.manifest["created_at"] > made.manifest["created_at"]
    assert forcing.make(*PLACE, refuse, inputs={}) == second
    other = Store(tmp_path, force=["customize"])
    assert other.make(*PLACE, refuse, inputs={}) == second


def test_stores_that_share_what_is_renewed_make_it_anew_once(tmp_path):
    renewed = set()
    first = Store(tmp_path, ["protect"], renewed).make(*PLACE, write_two, inputs={})
    again = Store(tmp_path, ["protect"], renewed)
    assert not again.makes_anew(*PLACE)
    assert again.make(*PLACE, refuse, inputs={}) == first
    assert again.makes_anew("protect", "k", "bob")
    assert Store(tmp_path, ["protect"]).makes_anew(*PLACE)


def test_force_starts_over_and_then_goes_on_from_its_own_checkpoint(tmp_path):
    seen = []

    def count(folder, checkpoint):
        seen.append(len(list(checkpoint.iterdir())))
        fail(folder, checkpoint)

    for force in ([], [], ["protect"], ["protect"]):
        with pytest.raises(RuntimeError, match="out of luck"):
            Store(tmp_path, force).make(*PLACE, count, inputs={})
    assert seen == [0, 1, 0, 1]
