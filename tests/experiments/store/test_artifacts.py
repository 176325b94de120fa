import hashlib
import json
import os
from pathlib import Path

import pytest

from experiments.store.artifacts import Store, key_of, safe_name

PROJECT = Path(__file__).resolve().parents[3]


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
