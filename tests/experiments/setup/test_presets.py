"""Names of rows, and the committed rows that new runs join."""

import shlex
from pathlib import Path

import pytest

from eval.gallery import Scorer
from experiments.records.naming import row_of
from experiments.records.published import read_folder
from experiments.run.stages import VERSIONS
from experiments.setup.composing import composed, resolved
from experiments.setup.models import Model
from experiments.setup.presets import row_names
from experiments.store.provenance import digest_of_file

COMMITTED = Path(__file__).parents[3] / "experiments" / "results" / "records"


def names(*words):
    config = composed(*words, "precision=float32", with_hydra=True)
    return row_names(resolved(config), config.hydra.runtime.choices, "float32")


@pytest.mark.parametrize(
    ("words", "method"),
    [
        ("attack=simac", "simac"),
        ("attack=simac attack.eps=4 seed=3 dataset.identities=[7]", "simac"),
        ("attack=simac attack.steps=12", "simac (steps=12)"),
        ("attack=simac loss=denoising", "simac (loss=denoising)"),
        ("attack=noise loss=denoising", "noise"),
        ("attack=simac quirk=moving_reference", "simac (loss.reference=phase_start)"),
        ("attack=e_aspl surrogate_model@attack.others.second=tiny", "e_aspl (others.second=tiny)"),
        ("attack=fsmg surrogate_model=sd21", "fsmg"),  # its learning rate follows the model
        ("attack=aspl memory=24gb", "aspl (surrogate_schedule.training.optimizer_states=8bit)"),
        (
            "attack=simac timestep_policy=adaptive_greedy_fast timestep_policy.gradient=image",
            "simac (timestep_policy=adaptive_greedy_fast, timestep_policy.gradient=image)",
        ),
    ],
)
def test_a_method_is_its_choice_and_what_departs_from_it(words, method):
    assert names(*words.split())[0] == method


@pytest.mark.parametrize(
    ("words", "details"),
    [
        ("", ""),
        ("customizer=lora adversary=other_term countermeasure=purify", ""),
        ("adversary=other_model gallery.batch_size=3 surrogate_model=tiny_b", ""),
        ("gallery.guidance_scale=5", "gallery.guidance_scale=5"),
        ("customizer.steps=5 metrics.ser_fiq=false", "customizer.steps=5, metrics.ser_fiq=false"),
        ("class_images.batch_size=2", "class_images.batch_size=2"),
        ("precision=bfloat16", "precision=bfloat16"),
    ],
)
def test_details_say_how_a_setting_departs_from_its_names(words, details):
    config = composed("precision=float32", *words.split(), with_hydra=True)
    assert row_names(resolved(config), config.hydra.runtime.choices, "float32")[1] == details


def committed():
    """The first record of each method in each file of committed records."""
    records = sorted(read_folder(COMMITTED).values(), key=lambda record: record.name)
    return {(record.experiment, record.method): record for record in reversed(records)}


@pytest.mark.slow
@pytest.mark.parametrize("place", committed(), ids=" ".join)
def test_a_run_of_today_joins_the_committed_row(place):
    record = committed()[place]
    words = [word for word in shlex.split(record.command)[2:] if not word.startswith("hydra")]
    config = composed(*words, f"precision={record.config['precision']}", with_hydra=True)
    choices, config = config.hydra.runtime.choices, resolved(config)
    models = {"base_model": "base_model", "surrogate_model": "surrogate_model"}
    models |= {key: key for key in record.digests if key.startswith("attack.")}
    models |= {"purifier": "purifier"} if "purifier" in record.digests else {}
    nodes = {
        "base_model": config["customizer"]["base_model"],
        "surrogate_model": config["surrogate_model"],
        "purifier": config["countermeasure"].get("model"),
        "attack.purifier": config["attack"].get("purifier"),
        **{f"attack.others.{k}": n for k, n in (config["attack"].get("others") or {}).items()},
    }
    digests = {
        key: Model(nodes[key]["name"], nodes[key]["path"], nodes[key]["revision"]).digest
        for key in models
    }
    digests["scorer"] = {file.name: digest_of_file(file) for file in Scorer().weights}
    assert row_of(config, digests, VERSIONS) == record.row.model_dump()
    assert row_names(config, choices, "float32") == (record.method, record.details)
