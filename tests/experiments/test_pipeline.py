"""Whole runs with a random-weight model: what they leave, what they share, what they say."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf, open_dict
from photo_folders import album
from PIL import Image
from runs import artifacts, pixels, protected, snapshot

from anticustom.identities import Portraits
from anticustom.images import write_png
from experiments.composing import composed
from experiments.pipeline import Pipeline

# what readers of records rely on
SURFACE = {
    "schema_version": int,
    "dataset": str,
    "identity": str,
    "attack": str,
    "eps": float,
    "loss": str,
    "timestep_policy": str,
    "surrogate_model": str,
    "countermeasure": str,
    "clean_photos": int,
    "adversary": str,
    "customizer": str,
    "seed": int,
    "command": str,
    "versions": dict,
    "seconds": {"protect": float, "customize": float, "evaluate": float},
    "scores": {
        arm: {
            "ism": float,
            "ism_failures_as_0": float,
            "fdfr": float,
            "brisque": float,
            "ser_fiq": float,
            "identity_retention": float,
        }
        for arm in ("protected", "unprotected")
    },
    "perceptibility": {"linf": float, "psnr": float, "ssim": float},
}
NULLABLE = {"ism", "ser_fiq", "identity_retention"}  # a random model draws no faces

# every line that a run may print
NUMBERS = r"(\s+([-+]?[\d.]+|-))+\s*"  # "-": no face was found
OWN_LINES = [
    r"",
    r"0: (photos|gallery of the (un)?protected victim) \.\.\.",
    r"2 class images of tiny for 'a photo of person' \.\.\.",
    r"0: protecting 4 photos \(simac, eps 8\) \.\.\.",
    r"0: customizing on the (un)?protected photos \(dreambooth\) \.\.\.",
    r"gallery of tiny, strangers \.\.\.",
    r"0: scoring (the (un)?protected gallery|strangers|the (held-out|reference) photos) \.\.\.",
    r"0: scoring how visible the protection is \.\.\.",
    r"overview: \S+/overview\.png   tracked: \S+/wandb/offline-run-\S+",
    r"simac at eps 8 on portraits 0, victim dreambooth \(surrogate tiny\)",
    r"victim  .*↓.*↑.*",
    r"prompt  .*↓.*↑.*",
    r"[- ]+",
    r"(unprotected|protected|difference)" + NUMBERS,
    r"a (photo|dslr portrait) of sks person  .*->.*",
    r"Photos changed by at most 8 grey levels \(eps 8\), PSNR [\d.]+ dB, SSIM [\d.]+",
    r"Arrows: towards better protection\. Failures: images without a face\.",
    r"\S+/records/\S+\.json",
]


def pipeline_of(*arguments: str) -> Pipeline:
    config = composed(*arguments, with_hydra=True)
    choices = OmegaConf.to_container(config.hydra.runtime.choices)
    with open_dict(config):
        del config["hydra"]
    return Pipeline(config, choices)


def test_a_run_leaves_protected_photos_within_eps(finished):
    (clean,) = artifacts(finished.output_dir, "photos")
    (folder,) = artifacts(finished.output_dir, "protect")
    names = [f"B{k}.png" for k in range(4)]
    assert sorted(file.name for file in folder.glob("*.png")) == names
    changes = [np.abs(pixels(folder / n) - pixels(clean / "set_B" / n)).max() for n in names]
    assert changes == [8] * 4  # four steps of 3 grey levels, projected
    assert finished.record["perceptibility"]["linf"] == 8


def test_a_run_leaves_a_record(finished):
    def check(values, surface, where=""):
        for key, kind in surface.items():
            value = values[key]
            if isinstance(kind, dict):
                check(value, kind, f"{where}{key}.")
            elif not (value is None and key in NULLABLE):
                kinds = (int, float) if kind is float else kind
                assert isinstance(value, kinds), f"{where}{key}: {value!r}"

    record = finished.record
    check(record, SURFACE)
    assert json.loads(Path(finished.out.splitlines()[-1]).read_text()) == finished.record
    expected = {
        "dataset": "portraits",
        "identity": "0",
        "attack": "simac",
        "eps": 8,
        "countermeasure": "none",
        "clean_photos": 0,
        "adversary": "as_assumed",
        "customizer": "dreambooth",
    }
    assert {key: record[key] for key in expected} == expected
    assert (record["loss"], record["timestep_policy"]) == (
        "feature_interference",
        "adaptive_greedy",
    )
    assert all(argument.split("=")[0] in record["command"] for argument in finished.arguments)
    assert record["seconds"]["protect"] > 0
    assert record["versions"]["torch"]


def test_a_run_leaves_an_overview_and_an_offline_wandb_run(finished):
    (overview,) = finished.output_dir.glob("overviews/*/overview.png")
    assert min(pixels(overview).shape[:2]) > 500
    (run,) = finished.output_dir.glob("wandb/offline-run-*/run-*.wandb")
    assert run.stat().st_size > 1000
    assert list(run.parent.glob("files/media/images/**/*.png"))


def test_a_run_prints_its_own_lines_alone(finished):
    assert finished.err == ""
    lines = finished.out.splitlines()
    foreign = [line for line in lines if not any(re.fullmatch(own, line) for own in OWN_LINES)]
    assert foreign == []
    assert len([line for line in lines if line.endswith("...")]) == 14


def test_the_same_command_again_changes_no_file(finished, command):
    before = snapshot(finished.output_dir)
    again = command(*finished.arguments, cwd=finished.output_dir.parent)
    assert again.last_line == finished.out.splitlines()[-1]
    assert "..." not in again.out
    assert snapshot(finished.output_dir) == before


def test_stages(command, miniature, tmp_path):
    arguments = [*miniature, "attack=noise", "tracker=none", f"output_dir={tmp_path}"]
    nothing = command(*arguments, "stages=[eval]")
    assert nothing.status == 1
    (line,) = nothing.err.splitlines()
    assert re.match(r"error: stages=\['eval'\]: there is no result of stage protect ", line)
    assert line.endswith("run it with stages=[protect,eval]")

    stopped = command(*arguments, "stages=[protect]")
    (folder,) = artifacts(tmp_path, "protect")
    assert stopped.last_line == f"protected photos of 0: {folder}"
    assert not artifacts(tmp_path, "customize")

    still = command(*arguments, "stages=[eval]")
    assert still.status == 1
    assert "there is no result of stage customize " in still.err

    assert command(*arguments, "stages=[customize]").status == 0
    assert not artifacts(tmp_path, "eval")
    assert not (tmp_path / "records").exists()
    assert Path(command(*arguments, "stages=[eval]").last_line).exists()


def test_force_computes_again(command, miniature, aspl, tmp_path):
    arguments = [*miniature, *aspl, "tracker=none", f"output_dir={tmp_path}"]
    record = Path(command(*arguments).last_line)
    files = snapshot(tmp_path)
    photos = protected(tmp_path)

    again = command(*arguments, "force=[protect]")
    assert again.last_line == str(record)
    assert "protecting 4 photos" in again.out
    assert protected(tmp_path) == photos
    now = snapshot(tmp_path)
    changed = {name.split("/")[1] for name in now if now[name] != files.get(name)}
    assert changed == {"protect"}

    command(*arguments, "force=[eval]")
    later = snapshot(tmp_path)
    changed = {name.split("/")[1] for name in later if later[name] != now[name]}
    assert changed == {"eval", record.name, record.stem}


def test_a_sweep_computes_again_once_what_its_jobs_share(command, miniature, tmp_path):
    sweep = ["-m", *miniature, "attack=noise", "attack.eps=4,8", "tracker=none"]
    sweep.append(f"output_dir={tmp_path}")
    assert command(*sweep).status == 0
    assert len(artifacts(tmp_path, "customize")) == 3
    again = command(*sweep, "force=[customize]")
    assert again.status == 0
    shared = "0: customizing on the unprotected photos (dreambooth) ..."
    assert again.out.count(shared) == 1
    assert again.out.count("0: customizing on the protected photos (dreambooth) ...") == 2


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


def test_class_images_count_is_a_setting_of_its_own(command, miniature, aspl, tmp_path):
    arguments = [*miniature, *aspl, "stages=[protect]", f"output_dir={tmp_path}"]
    assert command(*arguments, "class_images.count=3").status == 0
    (folder,) = artifacts(tmp_path, "class_images")
    assert len(list(folder.glob("*.png"))) == 3


def test_sweeps_run_one_job_after_the_other(command, miniature, tmp_path):
    arguments = [*miniature, "attack=none,noise", "stages=[protect]", f"output_dir={tmp_path}"]
    ended = command("-m", *arguments)
    assert ended.status == 0
    assert len(artifacts(tmp_path, "protect")) == 2
    assert len(list(tmp_path.glob("logs/*/[01]/.hydra/config.yaml"))) == 2


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


def test_own_photos_are_not_uploaded(miniature, tmp_path):
    own = ["dataset=folder", f"dataset.root={tmp_path}/photos", "surrogate_model=tiny", *miniature]
    Path(tmp_path, "photos").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "photos" / "a.png")
    out = f"output_dir={tmp_path}/out"
    assert pipeline_of(*own, out).tracker.upload_images is False
    assert pipeline_of(*own, out, "tracker.upload_images=true").tracker.upload_images is True
    assert pipeline_of(*miniature, out).tracker.upload_images is True
    asked = pipeline_of(*miniature, out, "tracker.upload_images=false")
    assert asked.tracker.upload_images is False


def test_an_ensemble_of_other_sizes_is_refused(command, miniature, tmp_path):
    ended = command(
        *miniature,
        "attack=advdm",
        "+surrogate_model@attack.others.second=tiny",
        f"output_dir={tmp_path}",
    )
    assert ended.status == 1
    assert "attack.others.second for 128 px" in ended.err


def test_what_fails_with_one_identity_is_said_and_the_others_go_on(
    miniature, tmp_path, monkeypatch, capsys
):
    ran = []

    def identity_of(pipeline, identity, scores):
        ran.append(identity.name)
        if identity.name == "1":
            raise FloatingPointError("the loss is not finite")

    monkeypatch.setattr(Pipeline, "_identity", identity_of)
    words = [*miniature, "attack=none", "tracker=none", f"output_dir={tmp_path}"]
    with pytest.raises(ValueError, match=r"^1 of 3 failed: 1: the loss is not finite$"):
        pipeline_of(*words, "dataset.identities=[0,1,2]").run()
    assert ran == ["0", "1", "2"]
    assert "error: 1: the loss is not finite; going on with the others" in capsys.readouterr().out
    with pytest.raises(FloatingPointError):
        pipeline_of(*words, "dataset.identities=[1]").run()


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
