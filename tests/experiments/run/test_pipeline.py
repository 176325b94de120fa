"""Whole runs with a random-weight model: what they leave, what they share, what they say."""

import json
import re
from pathlib import Path

import numpy as np
from PIL import Image
from runs import artifacts, job_of, pixels, protected, snapshot

from experiments.run.pipeline import tracker_of

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
    with Image.open(overview) as picture:
        assert min(picture.size) > 500
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


def test_own_photos_are_not_uploaded(miniature, tmp_path):
    def uploads(*words: str) -> bool:
        return tracker_of(job_of(*miniature, f"output_dir={tmp_path}/out", *words)).upload_images

    own = ["dataset=folder", f"dataset.root={tmp_path}/photos", "surrogate_model=tiny", *miniature]
    Path(tmp_path, "photos").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "photos" / "a.png")
    assert uploads(*own) is False
    assert uploads(*own, "tracker.upload_images=true") is True
    assert uploads() is True
    assert uploads("tracker.upload_images=false") is False


def test_an_ensemble_of_other_sizes_is_refused(command, miniature, tmp_path):
    ended = command(
        *miniature,
        "attack=advdm",
        "+surrogate_model@attack.others.second=tiny",
        f"output_dir={tmp_path}",
    )
    assert ended.status == 1
    assert "attack.others.second for 128 px" in ended.err
