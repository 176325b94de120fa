import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

RUN = Path(__file__).parents[2] / "run.py"


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
def aspl() -> list[str]:
    schedule = "attack.surrogate_schedule"
    return [
        "attack=aspl",
        "attack.steps=2",
        "attack.step_size=3",
        f"{schedule}.iterations=2",
        f"{schedule}.training_steps=1",
    ]
