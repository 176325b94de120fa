"""What the stages give to the methods, and what their results depend on."""

from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch
from runs import bare_job

from anticustom.countermeasures import GaussianNoise
from anticustom.identities import Identity, PhotoSet
from anticustom.images import from_8bit
from experiments.run.stages import Stages
from experiments.store.artifacts import Store

SETTINGS = {"precision": "float32", "training_precision": "bfloat16"}


def photos(letter: str, seed: int, count: int = 2) -> PhotoSet:
    generator = torch.Generator().manual_seed(seed)
    images = from_8bit(torch.randint(0, 256, (count, 3, 8, 8), generator=generator))
    return PhotoSet(tuple(f"{letter}{k}.png" for k in range(count)), images)


ANN = Identity("ann", photos("A", 1), photos("B", 2), photos("C", 3))


@dataclass
class Model:
    """Stands for the weights of a model; notes in which precision it is loaded."""

    digest: str
    loaded: list[str] = field(default_factory=list)

    def load(self, precision, device):
        self.loaded.append(precision)
        return SimpleNamespace(digest=self.digest, latent_shape=(4, 2, 2))


ONE = (Model("one"),)


class Attack:
    """Protects nothing, and keeps what it was given."""

    eps, needs_surrogate, needs_class_images = 8, True, False

    def __call__(self, inputs):
        self.inputs = inputs
        return inputs.photos


def stages(folder, seed=0, *, attack=None, models=ONE, purifier=None, settings=SETTINGS) -> Stages:
    keys = ["surrogate_model", *(f"attack.others.{k}" for k in range(1, len(models)))]
    models = dict(zip(keys, models, strict=True))
    models |= {"attack.purifier": purifier} if purifier else {}
    job = bare_job({"seed": seed, "attack": settings}, attack=attack or Attack(), models=models)
    return Stages(job, Store(folder), {"protect", "customize", "eval"})


def test_an_attack_is_given_the_clean_set_the_photos_and_each_surrogate(tmp_path):
    attack, models, purifier = Attack(), [Model("one"), Model("two")], Model("three")
    stages(tmp_path, 7, attack=attack, models=models, purifier=purifier).protect(ANN)
    inputs = attack.inputs
    assert (inputs.identity, inputs.seed, inputs.names) == ("ann", 7, ANN.set_B.names)
    assert torch.equal(inputs.photos, ANN.set_B.images)
    assert inputs.clean_set[0] == ANN.set_A.names
    assert torch.equal(inputs.clean_set[1], ANN.set_A.images)
    assert [surrogate.model.digest for surrogate in inputs.surrogates] == ["one", "two"]
    assert [model.loaded for model in models] == [["bfloat16"], ["bfloat16"]]
    assert (inputs.purifier.digest, purifier.loaded) == ("three", ["float32"])
    first, second = (
        surrogate.draws("p", "B0.png", 1, torch.arange(9)) for surrogate in inputs.surrogates
    )
    assert not torch.equal(first.noise, second.noise)


@pytest.mark.parametrize(
    "changed",
    [
        {"seed": 1},
        {"identity": Identity("ann", photos("A", 9), ANN.set_B, ANN.set_C)},
        {"identity": Identity("ann", ANN.set_A, photos("B", 9), ANN.set_C)},
        {"identity": Identity("bob", ANN.set_A, ANN.set_B, ANN.set_C)},
        {"models": [Model("two")]},
        {"models": [Model("one"), Model("two")]},
        {"purifier": Model("three")},
        {"settings": SETTINGS | {"training_precision": "float32"}},
        {"settings": SETTINGS | {"steps": 3}},
    ],
)
def test_protected_photos_depend_on_all_that_an_attack_is_given(tmp_path, changed):
    def protect(*, identity=ANN, **parts):
        return stages(tmp_path, **parts).protect(identity).path

    assert protect(**changed) != protect()
    assert protect() == protect(identity=Identity("ann", ANN.set_A, ANN.set_B, photos("C", 9)))


def test_both_arms_get_the_same_random_numbers(tmp_path):
    """Of equal photos a counter-measure, a victim and its gallery are equal in both arms."""
    drawn = []

    class Customizer:
        training = SimpleNamespace(preserves_prior=False)

        def customize(self, inputs):
            drawn.append(inputs.draws("step", "B0.png", 2, torch.arange(9)).noise)
            return [0.0]

        def save(self, network, folder):
            (folder / "victim").touch()

    job = bare_job(
        {"countermeasure": {}, "customizer": SETTINGS},
        countermeasure=GaussianNoise(8),
        customizer=Customizer(),
        models={"customizer.base_model": Model("one")},
    )
    noisy = []
    for arm in ("unprotected", "protected"):
        run = Stages(job, Store(tmp_path / arm), {"customize"})
        noisy.append(run.countermeasure("ann", arm, ANN.set_B).images)
        run.customize("ann", arm, ANN.set_B)
    assert torch.equal(*noisy)
    assert not torch.equal(noisy[0], ANN.set_B.images)
    assert torch.equal(*drawn)
