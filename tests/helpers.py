"""Stand-ins and comparisons that several tests share."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from anticustom.attacks.pgd import PGD
from anticustom.losses import Denoising
from anticustom.surrogates import Frozen
from anticustom.timestep_policies import Uniform

PROMPTS = {"instance_prompt": "a photo of sks person", "class_prompt": "a photo of person"}
NETWORKS = ("vae", "unet", "text_encoder")
SCHEDULE = "attack.surrogate_schedule"
TWICE = ("attack.steps=2", f"{SCHEDULE}.iterations=2", f"{SCHEDULE}.training_steps=1")
# shortened attacks
PRESETS = {
    "fsmg": ("attack.steps=3", f"{SCHEDULE}.training_steps=2"),
    "aspl": TWICE,
    "simac": (*TWICE, "timestep_policy.keep=900"),
    "aspl_lora": TWICE,
    "aspl_released": TWICE,
    "aspl_lora_released": TWICE,
    "fsmg_released": ("attack.steps=3", f"{SCHEDULE}.training_steps=2"),
    "t_fsmg_released": ("attack.steps=3", f"{SCHEDULE}.training_steps=2"),
    "t_aspl_released": TWICE,
    "simac_released": (*TWICE, "timestep_policy.keep=900"),
}


@contextmanager
def refused(match: str | None = None, error=ValueError) -> Iterator[pytest.ExceptionInfo]:
    """Expect an error whose message is one line and matches."""
    with pytest.raises(error, match=match) as refusal:
        yield refusal
    assert "\n" not in str(refusal.value)


class Killed(Exception):
    pass


class Reports(list):
    """The reports of progress: (phase, done, total, loss). Raises Killed at `kill_at`."""

    def __init__(self, kill_at=None):
        self.kill_at = kill_at

    def __call__(self, what, done, total, loss=None):
        self.append((what, done, total, float(loss)))
        if (what, done) == self.kill_at:
            raise Killed

    def of(self, kind: str) -> list[int]:
        return [done for what, done, *_ in self if what == kind]


class Memory:
    """A checkpoint kept in memory, as it would be on disk. It is due at every `every`th step."""

    def __init__(self, every: int = 1):
        self.saved, self.every, self.steps = None, every, 0

    def load(self):
        return self.saved

    def due(self) -> bool:
        self.steps += 1
        return self.steps % self.every == 0

    def save(self, tensors, facts) -> None:
        copies = {name: tensor.clone() for name, tensor in tensors.items()}
        self.saved = copies, json.loads(json.dumps(facts))


def weights(model) -> dict[str, torch.Tensor]:
    return {
        f"{part}.{name}": value.clone()
        for part in NETWORKS
        for name, value in getattr(model, part).state_dict().items()
    }


def base_weights(model) -> dict[str, torch.Tensor]:
    """Return the weights of a model without those of its adapters."""
    return {
        name.replace(".base_layer", ""): value
        for name, value in weights(model).items()
        if "lora_" not in name
    }


def changed(before, after) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


def parameters(model):
    return [p for part in NETWORKS for p in getattr(model, part).parameters()]


def levels(images, photos) -> list[float]:
    """Return the largest change of each photo, in grey levels."""
    return ((images - photos).abs().amax((1, 2, 3)) * 255).tolist()


def frozen(**changed) -> PGD:
    """Return an attack of two steps whose surrogate does not move, with `changed` settings."""
    settings = {
        "eps": 8,
        "step_size": 0.6375,
        "steps": 2,
        "loss": Denoising(),
        "timestep_policy": Uniform(),
        "surrogate_schedule": Frozen(),
    }
    return PGD(**settings | PROMPTS | changed)


def by_method(rows):
    """Return rows of the leaderboard by the names of their methods."""
    return {row.method: row for row in rows}


def resealed(file: Path, change: Callable[[dict], None]) -> None:
    """Change an artifact's manifest and seal it again, as if the artifact had been made so."""
    manifest = json.loads(file.read_text())
    del manifest["seal"]
    change(manifest)
    text = json.dumps(manifest, sort_keys=True)
    manifest["seal"] = hashlib.sha256(text.encode()).hexdigest()
    file.write_text(json.dumps(manifest))


def start_python(code: str, *arguments: object) -> subprocess.Popen:
    """Start `code` on one thread with the project's modules; its output is a pipe."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=Path(__file__).parents[1],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )


def retentions(records, attack) -> list[float]:
    """Return the retention of an attack's protected victims, in the order of the records."""
    chosen = [record for record in records if record.attack == attack]
    return [record.scores.protected.identity_retention for record in chosen]
