import io
import json
import shutil

import pytest
from helpers import resealed
from PIL import Image

from experiments.leaderboard.publish import GROUP_GAP, TILE, main, publish
from experiments.records.files import as_json, files_of, read, write
from experiments.records.published import read_folder, read_images
from experiments.store.artifacts import MANIFEST, Artifact, Store

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
            digests = {"protected": pictures("protect", name, COLOURS["protect"])}
            for arm in ("unprotected", "protected"):
                digests[f"gallery_{arm}"] = pictures("gallery", name, COLOURS[arm])
            write(made_up(**entries, name=name, digests=digests), output_dir / "records")
        return output_dir

    return made


@pytest.fixture
def results(tmp_path):
    return tmp_path / "results"


def strips(results):
    return sorted(path.stem for path in results.glob("strips/*.jpg"))


def test_records_join_the_folder_with_one_strip_for_each_method(run_of, results, capsys):
    output_dir = run_of(
        a={"identity": "10"},
        b={"identity": "9"},
        c={"attack": "noise", "identity": "9"},
        d={"attack": "fsmg", "eps": 4},
        e={"attack": "aspl", "method": "aspl (steps=2)"},
        f={"attack": "advdm", "countermeasure": "blur"},
    )
    main([str(output_dir), "--results", str(results)])
    assert "6 records and 2 strips" in capsys.readouterr().out
    assert list(read_folder(results / "records")) == ["f", "e", "d", "c", "b", "a"]
    assert strips(results) == ["b", "c"]
    strip = Image.open(io.BytesIO((results / "strips" / "b.jpg").read_bytes()))
    assert strip.height == TILE
    assert strip.width == 10 * TILE + 7 * 2 + 2 * GROUP_GAP
    centres = [TILE // 2, 2 * TILE + 20 + TILE // 2, strip.width - TILE // 2]
    brightest = [max(range(3), key=strip.getpixel((x, TILE // 2)).__getitem__) for x in centres]
    assert brightest == [0, 1, 2]  # protected photos, then the two victims


def test_publishing_again_adds_only_what_is_new(run_of, results):
    publish(files_of([run_of(b={"identity": "9"})]), results)
    before = {path: path.read_bytes() for path in results.glob("strips/*")}
    assert publish(files_of([run_of(a={"identity": "3"})]), results) == (2, 0)
    assert list(read_folder(results / "records")) == ["a", "b"]
    assert {path: path.read_bytes() for path in results.glob("strips/*")} == before


def test_scores_of_single_images_stand_in_one_table(made_up, results, tmp_path):
    rows = [{"prompt": "p", "image": "0.png", "similarity": 0.25, "brisque": 9.0}]
    scores = {"ism": 0.1, "ism_failures_as_0": 0.1, "fdfr": 0.0, "images": rows}
    for name in ("a", "b"):
        arms = {"protected": scores, "unprotected": scores}
        path = write(made_up(name=name, identity=name, scores=arms), tmp_path)
        publish([path], results)
    publish([path], results)
    images = read_images(results / "records")
    assert images.groupby("record").similarity.count().to_dict() == {"a": 2, "b": 2}
    # a committed line, which has no such rows, can be published again and keeps them
    publish(sorted(results.glob("records/single_runs.jsonl")), results)
    assert len(read_images(results / "records")) == 4


def test_a_strip_comes_with_any_person_who_has_pictures(run_of, made_up, results, tmp_path):
    """The first one's record may be committed already, from a run whose store is gone."""
    publish([write(made_up(identity="1", name="old"), tmp_path / "elsewhere")], results)
    output_dir = run_of(new={"identity": "2"})
    manifest = next(output_dir.glob("store/protect/*/*/manifest.json"))
    for k, damaged in enumerate(["{", "[]", "{}", '{"unit": 1, "files": {}}']):
        broken = manifest.parents[1] / f"broken{k}"
        broken.mkdir()
        (broken / manifest.name).write_text(damaged)
    main([str(output_dir), "--results", str(results)])
    assert strips(results) == ["new"]


@pytest.mark.parametrize("name", ["folder", "vggface2", "portraits"])
def test_pictures_of_anybody_else_are_never_copied(run_of, results, name):
    config = {"dataset": {"_target_": "anticustom.identities.Folder", "photos_per_set": 4}}
    publish(files_of([run_of(a={"dataset": name, "config": config})]), results)
    assert [path.name for path in results.iterdir()] == ["records"]


def test_a_run_whose_store_is_gone_has_no_strip(made_up, results, tmp_path):
    digests = {"protected": "x", "gallery_protected": "y", "gallery_unprotected": "z"}
    assert publish([write(made_up(digests=digests), tmp_path / "records")], results) == (1, 0)


@pytest.mark.parametrize("remade", [True, False])
def test_a_damaged_artifact_is_not_shown(run_of, results, remade):
    output_dir = run_of(a={})
    for folder in sorted((output_dir / "store" / "gallery").glob("*/a")):
        aside = folder.with_name("a.damaged-1")
        shutil.copytree(folder, aside)
        for file in aside.rglob("*.png"):
            Image.new("RGB", (64, 64), "black").save(file)
        if not remade:
            shutil.rmtree(folder)
    publish(files_of([output_dir]), results)
    assert strips(results) == ["a"] * remade
    for file in results.glob("strips/*.jpg"):
        with Image.open(file) as strip:
            assert max(strip.getpixel((strip.width - TILE // 2, TILE // 2))) > 200


def test_a_picture_outside_the_store_is_never_copied(run_of, made_up, results, tmp_path):
    output_dir = run_of(a={})
    Image.new("RGB", (64, 64), "white").save(tmp_path / "private.png")
    digests = {}
    for arm in ("unprotected", "protected"):
        (folder,) = (output_dir / "store" / "gallery" / COLOURS[arm]).glob("*/")

        def outside(manifest: dict) -> None:
            entry = manifest["files"].popitem()[1]
            manifest["files"] = {str(tmp_path / "private.png"): entry}

        resealed(folder / MANIFEST, outside)
        manifest = json.loads((folder / MANIFEST).read_text())
        digests[f"gallery_{arm}"] = Artifact(folder, manifest).digest
    protected = read(output_dir / "records" / "a.json").digests["protected"]
    record = made_up(name="a", digests={"protected": protected, **digests})
    publish([write(record, output_dir / "records")], results)
    assert not strips(results)


def test_a_record_that_came_again_replaces_its_twin_only_when_asked(
    run_of, made_up, results, tmp_path
):
    publish(files_of([run_of(old={})]), results)
    before = sorted(results.rglob("*"))
    digests = {"photos": {"B": "drawn anew"}}
    again = write(made_up(0.25, name="new", digests=digests), tmp_path / "again")
    with pytest.raises(SystemExit) as caught:
        main([str(again), "--results", str(results)])
    assert str(caught.value) == (
        f"error: {again}: the committed old is of the same row, identity (0) and seed (0): "
        "--replace puts this one in its place; or leave this one out"
    )
    assert sorted(results.rglob("*")) == before
    main([str(again), "--results", str(results), "--replace"])
    (record,) = read_folder(results / "records").values()
    assert (record.name, record.scores.protected.identity_retention) == ("new", 0.25)
    assert strips(results) == []
    twin = write(made_up(0.5, name="twin"), tmp_path / "again")
    both = r"(new|twin)\.json: .*(new|twin)\.json is of the same row"
    with pytest.raises(SystemExit, match=both):
        main([str(again), str(twin), "--results", str(results), "--replace"])


def test_no_path_of_the_machine_is_published(made_up, results, tmp_path):
    command = "python /home/ann/code/run.py attack=simac 'dataset.identities=[1, 2]' seed=1"
    words = " output_dir=/home/ann/out dataset.root=/home/ann/us attack.loss.target=~/x.png"
    words += " surrogate_model.path=/home/ann/sd15 +surrogate_model.path=ann/model"
    config = {
        "output_dir": "/home/ann/out",
        "dataset": {"_target_": "anticustom.identities.Folder", "root": "/home/ann/us"},
        "surrogate_model": {"path": "ann/model", "revision": "abc", "gallery": {}},
        "attack": {"others": {"second": {"path": "~/sd14", "revision": None, "gallery": {}}}},
    }
    path = write(made_up(command=command + words, config=config), tmp_path)
    publish([path], results)
    (record,) = read_folder(results / "records").values()
    assert "/home" not in as_json(record)
    assert "~" not in as_json(record)
    expected = "python run.py attack=simac 'dataset.identities=[1, 2]' seed=1 dataset.root=PATH "
    expected += "attack.loss.target=PATH surrogate_model.path=PATH +surrogate_model.path=ann/model"
    assert record.command == expected
    assert record.config["surrogate_model"]["path"] == "ann/model"


def test_nothing_is_copied_if_any_record_is_broken(made_up, results, tmp_path):
    folder = tmp_path / "outputs" / "records"
    text = as_json(made_up())
    write(made_up(), folder)
    (folder / "b.json").write_text(text.replace('"eps": 8', '"eps": "8"'))
    with pytest.raises(SystemExit, match=r"^error: .*b\.json: eps is '8', expected a number"):
        main([str(tmp_path / "outputs"), "--results", str(results)])
    assert not results.exists()
    with pytest.raises(SystemExit, match="nowhere: no record there"):
        main([str(tmp_path / "nowhere"), "--results", str(results)])
