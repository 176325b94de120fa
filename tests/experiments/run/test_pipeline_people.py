"""Runs over several people, and over real ones: what is checked first, what a failure costs."""

import json
import re
import shutil
import weakref
from pathlib import Path

import pytest
from photo_folders import album
from runs import artifacts, job_of, protected

from anticustom.identities import Portraits
from anticustom.images import write_png
from experiments.run import pipeline
from experiments.run.pipeline import SomeFailed


def test_order_and_sharding_of_identities_change_nothing(command, miniature, aspl, tmp_path):
    photos = []
    for identities in ("[3,7]", "[7,3]", "[7]"):
        output_dir = tmp_path / identities
        command(
            *miniature,
            *aspl,
            "stages=[protect]",
            f"dataset.identities={identities}",
            f"output_dir='{output_dir}'",
        )
        photos.append(protected(output_dir))
    both, turned, alone = photos
    assert both == turned
    assert alone == {name: data for name, data in both.items() if name.startswith("7/")}
    assert len(alone) == 4
    assert both["3/B0.png"] != both["7/B0.png"]


@pytest.mark.slow
@pytest.mark.parametrize(("dataset", "identity"), [("celebahq", "103"), ("vggface2", "n000050")])
def test_real_photos(command, miniature, aspl, shared, tmp_path, dataset, identity):
    records = []
    for attack in (["attack=none"], ["attack=noise"], aspl):
        ended = command(
            f"dataset={dataset}",
            f"dataset.root={shared}/samples/{dataset}",
            f"dataset.identities=[{identity}]",
            "surrogate_model=tiny",
            *miniature,
            "customizer=lora",
            *attack,
            "tracker=none",
            f"output_dir={tmp_path}",
        )
        assert ended.err == ""
        records.append(json.loads(Path(ended.last_line).read_text()))
    assert [record["attack"] for record in records] == ["none", "noise", "aspl"]
    assert {record["identity"] for record in records} == {identity}
    assert [record["perceptibility"]["linf"] for record in records[:2]] == [0, 8]
    assert 0 < records[2]["perceptibility"]["linf"] <= 8
    assert len(artifacts(tmp_path, "customize")) == 3
    unprotected = [record["scores"]["unprotected"]["images"] for record in records]
    assert unprotected[0] == unprotected[1] == unprotected[2]


def test_all_people_whose_photos_cannot_be_used_are_named_before_any_work(
    command, miniature, tmp_path
):
    root = tmp_path / "people"
    for name in ("ann", "zoe"):
        photos = Portraits(photos_per_set=2).read("0", 64).set_B
        for file, image in zip(("0.png", "1.png"), photos.images, strict=True):
            (root / name).mkdir(parents=True, exist_ok=True)
            write_png(root / name / file, image)
    album(root / "faceless", 2)
    album(root / "nobody", 2)
    album(root / "single", 1)
    words = ["dataset=folder", f"dataset.root={root}", "dataset.photos_per_set=1"]
    words += ["dataset.identities=5", "surrogate_model=tiny", *miniature, "attack=noise"]
    ended = command(*words, "tracker=none", f"output_dir={tmp_path}/out")
    assert ended.status == 1
    (line,) = ended.err.splitlines()
    for name in ("faceless", "nobody"):
        assert re.search(rf"{name}: no face found in any of the 1 reference photos", line)
    assert re.search(r"single: '.*/single' holds 1 photos and should hold 2", line)
    assert "ann:" not in line
    assert "zoe:" not in line
    assert not artifacts(tmp_path / "out", "protect")


def test_a_shard_without_identities_says_so_and_is_no_failure(command, miniature, tmp_path):
    shard = ["dataset.identities=4", "dataset.shard=7/8"]
    ended = command(*miniature, *shard, f"output_dir={tmp_path}")
    assert ended.last_line == (
        "dataset.shard=7/8 of 4 identities holds none: there is nothing to do"
    )
    assert not (tmp_path / "store").exists()


def test_what_fails_with_one_identity_is_said_and_the_others_go_on(
    miniature, tmp_path, monkeypatch, capsys
):
    ran, models = [], []

    class Model:
        pass

    def run_identity(stages, identity, scores, tracker):
        model = Model()
        ran.append(identity.name)
        models.append(weakref.ref(model))
        if identity.name == "1":
            raise FloatingPointError("the loss is not finite")
        return tmp_path / f"{identity.name}.json"

    monkeypatch.setattr(pipeline, "run_identity", run_identity)
    monkeypatch.setattr(pipeline, "read", str)
    monkeypatch.setattr(pipeline, "print_table", lambda records: None)
    words = [*miniature, "attack=none", "tracker=none", f"output_dir={tmp_path}"]
    with pytest.raises(SomeFailed, match=r"^1 of 3 failed: 1: the loss is not finite$") as failure:
        pipeline.run(job_of(*words, "dataset.identities=[0,1,2]"))
    assert failure.value.paths == [tmp_path / "0.json", tmp_path / "2.json"]
    assert ran == ["0", "1", "2"]
    assert not any(model() for model in models)  # the next person needs their memory
    assert "error: 1: the loss is not finite; going on with the others" in capsys.readouterr().out
    with pytest.raises(FloatingPointError):
        pipeline.run(job_of(*words, "dataset.identities=[1]"))


def test_photos_that_others_protected_are_all_checked_before_any_work(command, miniature, tmp_path):
    out, theirs = tmp_path / "out", tmp_path / "theirs"
    photos = ["stages=[protect]", "tracker=none", f"output_dir={out}"]
    known = command(*miniature, "attack=noise", "attack.eps=4", *photos)
    made = Path(known.last_line.rpartition(": ")[2])
    shutil.copytree(made, theirs / "0")
    precomputed = ["attack=precomputed", f"attack.root={theirs}", "dataset.identities=[0,1]"]
    ended = command(*miniature, *precomputed, "tracker=none", f"output_dir={out}")
    assert ended.status == 1
    assert "error: 1: " in ended.err
    assert f"{theirs}/1: no such folder" in ended.err
    assert not (out / "store" / "customize").exists()
    protected = artifacts(out, "protect")
    shutil.copytree(made, theirs / "1")  # another person's protected photos: over the budget
    ended = command(*miniature, *precomputed, "tracker=none", f"output_dir={out}")
    assert "error: 1: " in ended.err
    assert "more than attack.eps=16" in ended.err
    assert artifacts(out, "protect") == protected  # the first person's are not made again
