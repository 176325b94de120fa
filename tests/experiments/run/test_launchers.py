"""Sweeps whose jobs are processes of their own, at once on one store."""

import json
import re
import shlex
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from hydra.types import RunMode
from omegaconf import OmegaConf
from runs import RUN

from experiments.run.outcome import command_of
from experiments.setup.composing import composed
from experiments.setup.devices import chosen_device, neighbour_number

STAGES = ("photos", "class_images", "customize", "gallery")


@pytest.fixture
def at_once(miniature, environment, tmp_path):
    """Run a miniature sweep of jobs in processes of their own, all at once, in `tmp_path`."""

    def sweep(*arguments: str) -> subprocess.CompletedProcess:
        words = ["hydra/launcher=local", *miniature, "attack=noise", "tracker=none"]
        return subprocess.run(
            [sys.executable, str(RUN), "-m", *words, f"output_dir={tmp_path}", *arguments],
            # the jobs' interpreters import what is installed, which may be another checkout
            env=environment | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(RUN.parent)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )

    return sweep


@pytest.mark.slow
def test_jobs_at_once_share_a_store_and_one_table(at_once, tmp_path):
    ended = at_once("dataset.identities=2", "dataset.shard=0/2,1/2")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    records = [json.loads(file.read_text()) for file in tmp_path.glob("records/*.json")]
    assert sorted(record["identity"] for record in records) == ["0", "1"]
    # what is the same for both jobs was made once
    made = {stage: len(list(tmp_path.glob(f"store/{stage}/*/*/manifest.json"))) for stage in STAGES}
    assert made == {"photos": 2, "class_images": 1, "customize": 4, "gallery": 5}
    # one row of both people
    table = ended.stdout[ended.stdout.index("identities  ") :].splitlines()
    assert table[2].split()[0] == "2"
    assert table[3].startswith("But for one column")
    # each record says how to run its job alone
    for record in records:
        words = shlex.split(record["command"])
        assert words[:2] == ["python", "run.py"]
        config = composed(*words[2:], "precision=float32")  # what auto means without a GPU
        assert OmegaConf.to_container(config, resolve=True) == record["config"]
        assert config.dataset.shard == f"{record['identity']}/2"


def test_jobs_that_are_refused_do_not_end_the_others(at_once, tmp_path):
    ended = at_once("stages=[protect]", "attack.eps=4,999,8")
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    (reason,) = [line for line in ended.stdout.splitlines() if line.startswith("error: ")]
    assert re.search(r"attack=noise .*attack\.eps=999: eps=999 .* from 1 to 255", reason)
    last = ended.stderr.splitlines()[-1]
    assert last.startswith("error: jobs failed, for the reasons above: ")
    assert last.count("attack=") == 1
    assert len(list(tmp_path.glob("store/protect/*/*/manifest.json"))) == 2


def test_jobs_at_once_take_the_gpus_in_turn(monkeypatch):
    def device_of(job: int, *words: str) -> str:
        words = ("hydra.mode=MULTIRUN", *words, f"+hydra.job.num={job}")
        return chosen_device("auto", neighbour_number(composed(*words, with_hydra=True).hydra))

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    devices = [device_of(job, "hydra/launcher=local") for job in range(5)]
    assert devices == ["cuda:0", "cuda:1", "cuda:2", "cuda:0", "cuda:1"]
    # one after the other, and where each is given a GPU of its own
    assert {device_of(4), device_of(4, "hydra/launcher=slurm")} == {"cuda:0"}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_of(4, "hydra/launcher=local") == "cpu"


@pytest.mark.parametrize("asked", [0, "0", "cuda"])
def test_a_gpu_may_be_named_in_any_way_that_torch_takes(monkeypatch, asked):
    named = SimpleNamespace(device=torch.device("cuda:0"))
    monkeypatch.setattr(torch, "zeros", lambda count, device: named)
    assert chosen_device(asked) == "cuda:0"


def test_jobs_on_one_machine_see_its_gpus_and_have_time():
    launcher = composed("hydra/launcher=local", with_hydra=True).hydra.launcher
    assert launcher._target_.endswith(".LocalLauncher")
    assert launcher.gpus_per_node >= 8
    assert launcher.timeout_min >= 7 * 24 * 60


def test_slurm_is_asked_for_what_the_settings_say():
    words = ["hydra/launcher=slurm", "hydra.launcher.partition=gpu"]
    launcher = composed(*words, with_hydra=True).hydra.launcher
    assert launcher._target_.endswith("SlurmLauncher")
    assert (launcher.partition, launcher.gpus_per_node, launcher.tasks_per_node) == ("gpu", 1, 1)
    assert launcher.max_num_timeout > 0


def test_the_command_of_an_experiments_job_is_no_sweep():
    words = ["experiment=budgets", "attack=noise", "attack.eps=4"]
    hydra = composed(*words, with_hydra=True).hydra
    assert hydra.mode is RunMode.MULTIRUN
    command = shlex.split(command_of(hydra))
    assert command[:-1] == ["python", "run.py", *words]
    again = composed(*command[2:], with_hydra=True)
    assert again.hydra.mode is RunMode.RUN
    assert (again.attack.eps, len(again.dataset.identities)) == (4, 4)
