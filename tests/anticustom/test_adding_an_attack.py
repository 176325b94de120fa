"""The files of docs/adding_an_attack.md work as they are written there."""

import re
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hydra.utils import instantiate

from anticustom import losses
from anticustom.images import quantize_within
from experiments.setup.composing import CONF, composed

PAGE = Path(__file__).parents[2] / "docs" / "adding_an_attack.md"
SHORT = "attack.steps=2"
SCHEDULE = "attack.surrogate_schedule"


def blocks() -> dict[str, str]:
    """Return the page's files by their paths, with which they begin."""
    return dict(re.findall(r"```(?:yaml|python)\n# (\S+)\n(.*?)```", PAGE.read_text(), re.DOTALL))


@pytest.fixture
def added(tmp_path, monkeypatch):
    """Compose and instantiate an attack where the page's files have been added."""
    shutil.copytree(CONF, tmp_path / "conf")
    files = blocks()
    for path, text in files.items():
        if path.endswith(".yaml"):
            (tmp_path / path).write_text(text)
    names = dict(vars(losses))
    exec(files["anticustom/losses.py"], names)
    monkeypatch.setattr(losses, "LatentShift", names["LatentShift"], raising=False)
    module = ModuleType("anticustom.attacks.momentum")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(files["anticustom/attacks/momentum.py"], vars(module))

    def make(*words: str):
        config = composed(*words, folder=tmp_path / "conf")
        return instantiate(config.attack, _convert_="object")

    return make


def test_the_page_adds_four_kinds_of_file():
    assert sorted(blocks()) == [
        "anticustom/attacks/momentum.py",
        "anticustom/losses.py",
        "conf/attack/fsmg_greedy.yaml",
        "conf/attack/momentum.yaml",
        "conf/loss/latent_shift.yaml",
    ]


@pytest.mark.parametrize(
    "words",
    [
        ["attack=fsmg_greedy", f"{SCHEDULE}.training_steps=1", "timestep_policy.keep=990"],
        ["attack=aspl", "loss=latent_shift", f"{SCHEDULE}.iterations=1"],
        ["attack=momentum"],
        ["attack=momentum", "loss=feature_interference"],
    ],
    ids=" ".join,
)
def test_what_the_page_adds_protects(added, inputs_for, words):
    attack = added(*words, SHORT)
    inputs = inputs_for(attack)
    protected = attack(inputs)
    assert protected.isfinite().all()
    change = (quantize_within(protected, inputs.photos, attack.eps) - inputs.photos).abs() * 255
    assert change.amax((1, 2, 3)).min() >= 1
    assert change.max() <= attack.eps + 1e-3
    assert torch.equal(attack(inputs_for(attack)), protected)
