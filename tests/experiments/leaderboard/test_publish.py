import io
import json
import shutil

import pytest
from PIL import Image

from experiments.leaderboard.publish import GROUP_GAP, TILE, main, publish
from experiments.records import record as records
from experiments.records.record import files_of
from experiments.store.artifacts import Store

COLOURS = {"protect": "red", "unprotected": "lime", "protected": "blue"}


@pytest.fixture
def run_of(tmp_path, made_up):
    """Call it for an output_dir with records, and a store that holds their pictures."""
    output_dir = tmp_path / "outputs"
    store = Store(output_dir / "store")

    def pictures(stage, unit, colour):
        def build(folder, checkpoint):
            for k in range(5):
                (folder / f"{k % 2}").mkdir(exist_ok=True)
                Image.new("RGB", (64, 64), colour).save(folder / f"{k % 2}" / f"{k}.png")

        return store.make(stage, colour, unit, build, inputs={}).digest

    def made(**names):
        for name, entries in names.items():
            digests = {"base_model": "ab", "surrogate_model": "ab"}
            digests["protected"] = pictures("protect", name, COLOURS["protect"])
            for arm in ("unprotected", "protected"):
                digests[f"gallery_{arm}"] = pictures("gallery", name, COLOURS[arm])
            records.write(made_up(**entries, digests=digests), output_dir / "records", name)
        return output_dir

    return made


def names(folder, suffix):
    return sorted(path.name for path in folder.glob(f"*{suffix}"))


def test_records_are_copied_with_one_strip_for_each_configuration(run_of, tmp_path, capsys):
    output_dir = run_of(
        a={"identity": "10"}, b={"identity": "9"}, c={"attack": "noise", "identity": "9"}
    )
    target = tmp_path / "committed"
    main([str(output_dir), "--target", str(target)])
    assert "3 records and 2 strips" in capsys.readouterr().out
    assert names(target, ".json") == ["a.json", "b.json", "c.json"]
    assert names(target, ".jpg") == ["b.jpg", "c.jpg"]
    assert records.read(target / "a.json") == records.read(output_dir / "records" / "a.json")
    strip = Image.open(io.BytesIO((target / "b.jpg").read_bytes()))
    assert strip.height == TILE
    assert strip.width == 10 * TILE + 7 * 2 + 2 * GROUP_GAP
    centres = [TILE // 2, 2 * TILE + 20 + TILE // 2, strip.width - TILE // 2]
    brightest = [max(range(3), key=strip.getpixel((x, TILE // 2)).__getitem__) for x in centres]
    assert brightest == [0, 1, 2]  # protected photos, then the two victims


def test_publishing_again_adds_only_what_is_new(run_of, tmp_path):
    target = tmp_path / "committed"
    publish(files_of([run_of(b={"identity": "9"})]), target)
    before = {path.name: path.read_bytes() for path in target.iterdir()}
    written = publish(files_of([run_of(a={"identity": "3"})]), target)
    assert names(target, ".jpg") == ["b.jpg"]
    assert target / "a.json" in written
    assert before.items() <= {path.name: path.read_bytes() for path in target.iterdir()}.items()


def test_a_strip_comes_with_any_person_who_has_pictures(run_of, made_up, tmp_path):
    """The first one's record may be committed already, from a run whose store is gone."""
    target = tmp_path / "committed"
    records.write(made_up(identity="1"), target, "old")
    output_dir = run_of(new={"identity": "2"})
    manifest = next(output_dir.glob("store/protect/*/*/manifest.json"))
    for k, damaged in enumerate(["{", "[]", "{}", '{"unit": 1, "files": {}}']):
        broken = manifest.parents[1] / f"broken{k}" / manifest.name
        broken.parent.mkdir()
        broken.write_text(damaged)
    main([str(output_dir), "--target", str(target)])
    assert names(target, ".jpg") == ["new.jpg"]


@pytest.mark.parametrize("name", ["folder", "vggface2", "portraits"])
def test_pictures_of_anybody_else_are_never_copied(run_of, tmp_path, name):
    config = {"dataset": {"_target_": "anticustom.identities.Folder", "photos_per_set": 4}}
    output_dir = run_of(a={"dataset": name, "config": config})
    publish(files_of([output_dir]), tmp_path / "committed")
    assert [path.name for path in (tmp_path / "committed").iterdir()] == ["a.json"]


def test_a_run_whose_store_is_gone_has_no_strip(made_up, tmp_path):
    digests = {"base_model": "ab", "surrogate_model": "ab", "protected": "x"}
    digests |= {"gallery_protected": "y", "gallery_unprotected": "z"}
    path = records.write(made_up(digests=digests), tmp_path / "records", "a")
    publish([path], tmp_path / "committed")
    assert [file.name for file in (tmp_path / "committed").iterdir()] == ["a.json"]


@pytest.mark.parametrize("remade", [True, False])
def test_a_damaged_artifact_is_not_shown(run_of, tmp_path, remade):
    output_dir = run_of(a={})
    for folder in list((output_dir / "store" / "gallery").glob("*/a")):
        aside = folder.with_name("a.damaged-1")
        shutil.copytree(folder, aside)
        for file in aside.rglob("*.png"):
            Image.new("RGB", (64, 64), "black").save(file)
        if not remade:
            shutil.rmtree(folder)
    publish(files_of([output_dir]), tmp_path / "committed")
    assert names(tmp_path / "committed", ".jpg") == ["a.jpg"] * remade
    for file in (tmp_path / "committed").glob("*.jpg"):
        with Image.open(file) as strip:
            assert max(strip.getpixel((strip.width - TILE // 2, TILE // 2))) > 200


def test_what_the_leaderboard_would_refuse_is_not_copied(run_of, made_up, tmp_path):
    target = tmp_path / "committed"
    publish(files_of([run_of(old={})]), target)
    before = sorted(target.iterdir())
    (tmp_path / "outputs" / "records" / "old.json").unlink()
    digests = {"base_model": "ab", "surrogate_model": "ab", "photos": {"B": "drawn anew"}}
    again = records.write(made_up(digests=digests), tmp_path / "outputs" / "records", "new")
    with pytest.raises(SystemExit) as caught:
        main([str(tmp_path / "outputs"), "--target", str(target)])
    assert str(caught.value) == (
        f"error: {again}: {target / 'old.json'} is of the same configuration, identity (0) and "
        "seed (0); delete that one if this replaces it, or leave this one out"
    )
    assert sorted(target.iterdir()) == before


def test_commands_name_no_place(made_up, tmp_path):
    command = "python /home/ann/code/run.py attack=simac 'dataset.identities=[1, 2]'"
    path = records.write(made_up(command=command, dataset="x"), tmp_path, "a")
    (copy,) = publish([path], tmp_path / "committed")
    expected = "python run.py attack=simac 'dataset.identities=[1, 2]'"
    assert records.read(copy)["command"] == expected


def test_nothing_is_copied_if_any_record_is_broken(made_up, tmp_path):
    folder = tmp_path / "outputs" / "records"
    records.write(made_up(), folder, "a")
    (folder / "b.json").write_text(json.dumps(made_up() | {"eps": "8"}))
    with pytest.raises(SystemExit, match=r"^error: .*b\.json: eps is '8', expected a number"):
        main([str(tmp_path / "outputs"), "--target", str(tmp_path / "committed")])
    assert not (tmp_path / "committed").exists()
    with pytest.raises(SystemExit, match="nowhere: no record there"):
        main([str(tmp_path / "nowhere"), "--target", str(tmp_path / "committed")])
