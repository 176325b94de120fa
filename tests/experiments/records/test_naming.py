"""What decides numbers, and the words that tell settings and methods apart."""

import copy
import dataclasses
import importlib

import pytest

from anticustom.attacks.pgd import PGD
from anticustom.countermeasures import JPEG
from anticustom.customizers.dreambooth import DreamBooth
from anticustom.sampling import ClassImages, Gallery
from eval.gallery import Scorer
from experiments.records.naming import (
    attack_parts,
    decisive,
    differences,
    method_parts,
    row_of,
    setting_parts,
    with_contents,
)
from experiments.run.stages import VERSIONS
from experiments.setup.composing import composed, resolved
from experiments.setup.presets import row_names

DIGESTS = {"base_model": "ab", "surrogate_model": "ab", "scorer": {"sface": "cd"}}
MEAN = {"_target_": "anticustom.ensembles.MeanImage"}
# a node of each kind, with its class
NODES = {
    "attack": PGD,
    "customizer": DreamBooth,
    "gallery": Gallery,
    "class_images": ClassImages,
    "countermeasure": JPEG,
    "metrics": Scorer,
}


@pytest.fixture(scope="module")
def config():
    words = ["attack=simac", "countermeasure=jpeg75", "precision=float32"]
    config = composed(*words, with_hydra=True)
    return resolved(config), config.hydra.runtime.choices


@pytest.mark.parametrize(("node", "kind"), NODES.items(), ids=NODES)
def test_a_new_option_at_its_neutral_value_forks_nothing(config, node, kind, monkeypatch):
    """The option is on the class, and the configuration names it."""
    config, choices = config
    later = copy.deepcopy(config)
    later[node]["made_up"] = 0.0
    assert row_of(later, DIGESTS, VERSIONS) != row_of(config, DIGESTS, VERSIONS)
    monkeypatch.setattr(kind, "NEUTRAL", {**getattr(kind, "NEUTRAL", {}), "made_up": 0.0}, False)
    assert decisive(later[node]) == decisive(config[node])  # what stages' keys are made of
    assert row_of(later, DIGESTS, VERSIONS) == row_of(config, DIGESTS, VERSIONS)
    assert row_names(later, choices, "float32") == ("simac", "")
    later[node]["made_up"] = 0.5
    assert row_of(later, DIGESTS, VERSIONS) != row_of(config, DIGESTS, VERSIONS)
    assert "made_up=0.5" in " ".join(row_names(later, choices, "float32"))


def test_neutral_values_are_literals_of_options_that_exist():
    for module in ("attacks.pgd", "surrogates", "finetuning", "adapters", "timestep_policies"):
        for kind in vars(importlib.import_module(f"anticustom.{module}")).values():
            if dataclasses.is_dataclass(kind) and hasattr(kind, "NEUTRAL"):
                assert kind.NEUTRAL.keys() <= {field.name for field in dataclasses.fields(kind)}


@pytest.mark.parametrize(
    ("changes", "counts"),
    [
        ({"training_precision": "float32"}, False),
        ({"training_precision": "bfloat16"}, True),
        ({"transform_samples": 4}, False),
        ({"transform_samples": 4, "transforms": ["blur"]}, True),
        ({"combination": MEAN}, False),
        ({"combination": MEAN, "others": {"second": {"gallery": {}}}}, True),
        ({"draws_per_step": 1}, False),
        ({"draws_per_step": 4}, True),
        ({"purifier": {"name": "tiny_b"}}, False),  # its weights count, by their digest
        ({"eps": 4}, False),  # a row has its budget beside the method
    ],
)
def test_options_count_where_they_are_in_use(config, changes, counts):
    config, _ = config
    later = {**config, "attack": {**config["attack"], **changes}}
    assert (attack_parts(later) != attack_parts(config)) is counts


def test_a_class_counts_by_its_name_and_not_by_its_place(config, monkeypatch):
    config, _ = config
    module = importlib.import_module("anticustom.attacks.controls")
    monkeypatch.setattr(module, "PGD", PGD, raising=False)
    moved = {**config, "attack": {**config["attack"], "_target_": f"{module.__name__}.PGD"}}
    assert row_of(moved, DIGESTS, VERSIONS) == row_of(config, DIGESTS, VERSIONS)
    assert decisive(config["attack"])["loss"]["_target_"] == "FeatureInterference"


def test_the_same_settings_by_other_choices_are_the_same_method(config):
    words = ["attack=aspl", "loss=feature_interference", "timestep_policy=adaptive_greedy"]
    same = resolved(composed(*words, "countermeasure=jpeg75", "precision=float32"))
    assert row_of(same, DIGESTS, VERSIONS) == row_of(config[0], DIGESTS, VERSIONS)


def test_batch_sizes_of_class_images_count_and_those_of_galleries_do_not(config):
    config, _ = config
    for node, counts in (("gallery", False), ("class_images", True)):
        later = {**config, node: {**config[node], "batch_size": 3}}
        assert (setting_parts(later) != setting_parts(config)) is counts


@pytest.mark.parametrize(
    ("digests", "versions", "moved"),
    [
        ({"base_model": "other"}, {}, ["setting"]),
        ({"scorer": {"sface": "other"}}, {}, ["setting"]),
        ({"attack.others.second": "ab"}, {}, ["method"]),
        ({"photos": {"B": "ab"}}, {}, []),
        ({}, {"protect": 99}, ["method"]),
        ({}, {"gallery": 99}, ["setting"]),
    ],
)
def test_weights_and_versions_of_stages_decide_rows(config, digests, versions, moved):
    before = row_of(config[0], DIGESTS, VERSIONS)
    after = row_of(config[0], DIGESTS | digests, VERSIONS | versions)
    assert [key for key in before if before[key] != after[key]] == moved


def test_files_count_by_their_contents(tmp_path):
    keys = []
    for name, content in {"a.png": b"a picture", "b.png": b"a picture", "c.png": b"other"}.items():
        (tmp_path / name).write_bytes(content)
        loss = {"target": str(tmp_path / name), "wraps": False}
        keys.append(with_contents({"loss": loss}, "0"))
    assert keys[0] == keys[1] != keys[2]
    assert keys[0]["loss"]["wraps"] is False
    folder = {"attack": {"root": str(tmp_path), "eps": 8}}
    assert method_parts(folder) == {"root": tmp_path.name}
    assert len(with_contents(folder["attack"], "0")["root"]) == 64


def test_differences_are_words():
    usual = {"steps": 6, "schedule": {"rate": 2.0}, "loss": {"_target_": "Denoising"}}
    settings = {"steps": 12, "schedule": {"rate": 2}, "loss": {"_target_": "Target", "weight": 3}}
    assert differences(settings, usual, settings) == "loss=Target, steps=12"
    assert differences({}, {"steps": 6}, {"steps": 1}) == "steps=1"  # neutral, so not among parts
    assert differences({"a": ["x", "y"]}, {}, {}) == "a=[x,y]"
    assert differences({"a": "0123456789abcdef" * 4}, {}, {}) == "a=01234567"
    assert len(differences({"a": "word " * 50}, {}, {})) < 60
    assert differences(usual, usual, usual) == ""
