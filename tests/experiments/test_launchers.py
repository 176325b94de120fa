"""Sweeps whose jobs are processes of their own, at once on one store."""

import json
import subprocess
import sys

from runs import RUN

from experiments.composing import composed

STAGES = ("photos", "class_images", "customize", "gallery")


def test_jobs_at_once_share_a_store(miniature, environment, tmp_path):
    arguments = [
        *miniature,
        "attack=noise",
        "dataset.identities=2",
        "dataset.shard=0/2,1/2",
        "tracker=none",
        f"output_dir={tmp_path}",
    ]
    ended = subprocess.run(
        [sys.executable, str(RUN), "-m", "hydra/launcher=submitit_local", *arguments],
        env=environment | {"OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    records = [json.loads(file.read_text()) for file in tmp_path.glob("records/*.json")]
    assert sorted(record["identity"] for record in records) == ["0", "1"]
    # what is the same for both jobs was made once
    made = {stage: len(list(tmp_path.glob(f"store/{stage}/*/*/manifest.json"))) for stage in STAGES}
    assert made == {"photos": 2, "class_images": 1, "customize": 4, "gallery": 5}


def test_slurm_is_asked_for_what_the_settings_say():
    words = ["hydra/launcher=slurm", "hydra.launcher.partition=gpu"]
    launcher = composed(*words, with_hydra=True).hydra.launcher
    assert launcher._target_.endswith("SlurmLauncher")
    assert (launcher.partition, launcher.gpus_per_node, launcher.tasks_per_node) == ("gpu", 1, 1)
    assert launcher.max_num_timeout > 0
