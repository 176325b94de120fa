import json
import os
import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from runs import SIMAC, Finished


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
    """Call it for a record of scores that nobody measured; keywords replace its entries."""

    def record(retention=0.5, *, fdfr=0.0, psnr=33.0, unprotected=0.8, config=None, **entries):
        attack = {"_target_": "anticustom.attacks.pgd.PGD", "steps": 6}

        def arm(retention, fdfr):
            scores = {"ism": 0.6, "ism_failures_as_0": 0.6 * (1 - fdfr), "fdfr": fdfr}
            scores |= {"identity_retention": retention, "brisque": 30.0, "ser_fiq": None}
            return scores | {"prompts": [{"prompt": "a photo", "fdfr": fdfr}], "images": []}

        made = {
            "schema_version": 1,
            "command": "python run.py",
            "created_at": "2026-11-21T12:00:00+00:00",
            "versions": {"torch": "2.15.0"},
            "machine": {"gpu": None, "torch_threads": 1},
            "dataset": "portraits",
            "identity": "0",
            "attack": "simac",
            "eps": 8,
            "loss": "feature_interference",
            "timestep_policy": "adaptive_greedy",
            "surrogate_model": "tiny",
            "countermeasure": "none",
            "clean_photos": 0,
            "adversary": "as_assumed",
            "customizer": "dreambooth",
            "seed": 0,
            "config": {
                "attack": attack,
                "customizer": {"steps": 300, "base_model": {"name": "tiny"}},
                "gallery": {"prompts": ["a photo"], "guidance_scale": 7.5},
                "class_images": {"count": 32},
                "countermeasure": {"_target_": "anticustom.countermeasures.Unchanged"},
                "dataset": {"_target_": "anticustom.identities.Portraits", "photos_per_set": 4},
                "metrics": {"backbone": "sface"},
                "precision": "float32",
                **(config or {}),
            },
            "digests": {"base_model": "ab", "surrogate_model": "ab"},
            "seconds": {"protect": 1.0, "customize": 2.0, "evaluate": 3.0},
            "peak_memory_bytes": {"cpu": 1, "cuda": None},
            "scorer": {"backbone": "sface"},
            "scores": {"protected": arm(retention, fdfr), "unprotected": arm(unprotected, 0.0)},
            "perceptibility": {"linf": 8, "psnr": psnr, "ssim": 0.9, "images": []},
        }
        return made | entries

    return record


@pytest.fixture(scope="session")
def benchmark_of(made_up):
    """Call it for named records of methods on identities: `levels` maps a method to how far it
    lowers the retention, `spread` is how much that differs between identities.
    """

    def records(levels, *, identities=12, eps=(8,), spread=0.02, **entries):
        found = {}
        for method, level in levels.items():
            for budget in eps:
                for i in range(identities):
                    # no two alike: tests of tied differences take a second each
                    wobble = spread * random.Random(f"{method} {i}").uniform(-1, 1)
                    clean = 0.7 + 0.01 * (i % 5)
                    found[f"{method}_{budget}_{i}"] = made_up(
                        round(clean - level * budget / 8 + wobble, 6),
                        unprotected=round(clean, 6),
                        attack=method,
                        eps=budget,
                        identity=str(i),
                        psnr=38.0 - budget,
                        command=f"python run.py attack={method} dataset.identities=[{i}]",
                        **entries,
                    )
        return found

    return records
