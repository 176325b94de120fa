import json
import os
import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from runs import SIMAC, Finished

from experiments.records.naming import row_of
from experiments.records.record import Imported, Scored, record_of
from experiments.store.artifacts import digest_of


@dataclass(frozen=True)
class Ended:
    """A command that has ended: its exit status, -9 if it was killed, and what it printed."""

    status: int
    out: str
    err: str

    @property
    def last_line(self) -> str:
        assert self.status == 0, self.out + self.err
        return self.out.splitlines()[-1]


@pytest.fixture(scope="session")
def environment(tmp_path_factory) -> dict[str, str]:
    """The environment of commands: a home of their own, no GPU, no network."""
    kept = {key: value for key, value in os.environ.items() if "WANDB" not in key}
    home = tmp_path_factory.mktemp("home")
    return kept | {"HOME": str(home), "CUDA_VISIBLE_DEVICES": "", "WANDB_MODE": "offline"}


@pytest.fixture(scope="session")
def command(environment, tmp_path_factory):
    """Call it with arguments of `python run.py` and maybe a disturbance of `forked_commands.py`."""
    place = tmp_path_factory.mktemp("commands")
    server = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("forked_commands.py"))],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    assert server.stdout.readline() == "ready\n"

    def run(*arguments: str, cwd: Path = place, **disturbance) -> Ended:
        order = {"arguments": arguments, "cwd": str(cwd), "output": str(place), **disturbance}
        server.stdin.write(json.dumps(order) + "\n")
        server.stdin.flush()
        status = int(server.stdout.readline())
        return Ended(status, (place / "out").read_text(), (place / "err").read_text())

    yield run
    server.stdin.close()
    server.wait()


@pytest.fixture(scope="session")
def miniature(random_sd) -> list[str]:
    """Arguments that make everything but the attack take a second or two."""
    return [
        f"surrogate_model.path={random_sd}",
        "surrogate_model.class_images.count=2",
        "surrogate_model.gallery.images_per_prompt=1",
        "surrogate_model.gallery.steps=2",
        "prompts.gallery=[a photo of sks person,a dslr portrait of sks person]",
        "customizer.steps=2",
    ]


@pytest.fixture(scope="session")
def finished(miniature, environment, tmp_path_factory):
    output_dir = tmp_path_factory.mktemp("finished") / "out"
    return Finished([*miniature, *SIMAC, f"output_dir={output_dir}"], output_dir, environment)


@pytest.fixture(scope="session")
def aspl() -> list[str]:
    schedule = "attack.surrogate_schedule"
    return [
        "attack=aspl",
        "attack.steps=2",
        "attack.step_size=3",
        f"{schedule}.iterations=2",
        f"{schedule}.training_steps=1",
    ]


@pytest.fixture(scope="session")
def made_up():
    """Call it for a record of scores that nobody measured; keywords replace its entries.

    Keywords in `config` and `digests` replace entries of these. The digests of the record's row
    follow from its attack and configuration. With `imported` the record is an imported one.
    """
    return _made_up


def _made_up(
    retention=0.5, *, fdfr=0.0, psnr=33.0, unprotected=0.8, config=None, digests=None, **entries
) -> Scored:
    attack = entries.get("attack", "simac")
    config = {
        "attack": {"_target_": "anticustom.attacks.pgd.PGD", "steps": 6},
        "surrogate_model": {"gallery": {"steps": 20}},
        "customizer": {"steps": 300, "base_model": {"name": "tiny", "gallery": {"steps": 20}}},
        "gallery": {"prompts": ["a photo"], "guidance_scale": 7.5},
        "class_images": {"count": 32},
        "countermeasure": {"_target_": "anticustom.countermeasures.Unchanged"},
        "dataset": {"_target_": "anticustom.identities.Portraits", "photos_per_set": 4},
        "metrics": {"backbone": "sface"},
        "precision": "float32",
        **(config or {}),
    }
    digests = {"base_model": "ab", "surrogate_model": "ab", "scorer": {}, **(digests or {})}
    stages = {"protect": 2, "customize": 1}
    row = row_of(config, digests, stages)
    # a preset of another name has other settings
    row["method"] = digest_of("method", 1, {"attack": attack, "row": row["method"]})
    arms = {"protected": _arm(retention, fdfr), "unprotected": _arm(unprotected, 0.0)}
    data = {
        "schema_version": 2,
        "dataset": "portraits",
        "identity": "0",
        "attack": attack,
        "method": attack,
        "eps": 8,
        "surrogate_model": "tiny",
        "base_model": "tiny",
        "countermeasure": "none",
        "clean_photos": 0,
        "adversary": "as_assumed",
        "customizer": "dreambooth",
        "row": row,
        "seed": 0,
        "scorer": {"backbone": "sface"},
        "scores": arms,
        "perceptibility": {"linf": 8, "psnr": psnr, "ssim": 0.9, "images": []},
        "command": "python run.py",
        "experiment": None,
        "created_at": "2026-11-21T12:00:00+00:00",
        "versions": {"torch": "2.15.0"},
        "stages": stages,
        "made_with": {},
        "machine": {"gpu": None, "torch_threads": 1},
        "processors": dict.fromkeys(("protect", "protected", "unprotected"), "a processor"),
        "loss": "feature_interference",
        "timestep_policy": "adaptive_greedy",
        "photos": 4,
        "config": config,
        "digests": digests,
        "seconds": {"protect": 1.0, "customize": 2.0, "evaluate": 3.0},
        "peak_memory_bytes": {"cpu": 1, "cuda": None},
        **entries,
    }
    if "imported" in data:
        data = {key: data[key] for key in Imported.model_fields if key in data}
    return record_of({"name": digest_of("record", 1, data), **data}, "made up")


def _arm(retention, fdfr) -> dict:
    return {
        "ism": 0.6,
        "ism_failures_as_0": 0.6 * (1 - fdfr),
        "fdfr": fdfr,
        "identity_retention": retention,
        "brisque": 30.0,
        "ser_fiq": None,
        "prompts": [{"prompt": "a photo", "fdfr": fdfr}],
        "images": [],
    }


@pytest.fixture(scope="session")
def benchmark_of(made_up):
    """Call it for records of methods on identities: `levels` maps a method to how far it lowers
    the retention, `spread` is how much that differs between identities.
    """

    def records(levels, *, identities=12, eps=(8,), spread=0.02, **entries):
        made = []
        for method, level in levels.items():
            for budget in eps:
                for i in range(identities):
                    wobble = spread * random.Random(f"{method} {i}").uniform(-1, 1)
                    clean = 0.7 + 0.01 * (i % 5)
                    made.append(
                        made_up(
                            round(clean - level * budget / 8 + wobble, 6),
                            unprotected=round(clean, 6),
                            attack=method,
                            eps=budget,
                            identity=str(i),
                            psnr=38.0 - budget,
                            command=f"python run.py attack={method} dataset.identities=[{i}]",
                            **entries,
                        )
                    )
        return made

    return records
