"""The benchmark on the embedded model: what it counts and what it reports."""

import json

import pytest
import torch

from experiments.benchmarks import speed as benchmark
from experiments.benchmarks.random_models import random_model
from experiments.benchmarks.speed import DEFAULTS, PHASES, counted, measure

SETTINGS = DEFAULTS | {"device": "cpu", "photos": 1, "repetitions": 2}


def test_operations_are_counted():
    a = torch.randn(3, 5)
    assert counted(lambda: a @ a.T) == 2 * 3 * 5 * 3
    q = torch.randn(1, 2, 8, 4)
    attention = 2 * (2 * 2 * 8 * 8 * 4)
    assert counted(lambda: torch.nn.functional.scaled_dot_product_attention(q, q, q)) == attention


@pytest.mark.parametrize(("long", "calls"), [(20, 4), (0, 3)])
def test_a_short_call_is_warmed_up_before_it_counts(monkeypatch, long, calls):
    monkeypatch.setattr(benchmark, "LONG", long)
    called = []
    assert len(benchmark.timed(lambda: called.append(1), "cpu", 3)) == 3
    assert len(called) == calls


def test_a_perturbation_step_costs_as_much_for_each_photo():
    one, three = (measure("perturbation_step", SETTINGS | {"photos": photos}) for photos in (1, 3))
    assert len(one["seconds"]) == 2
    assert min(one["seconds"]) > 0
    assert three["flops"] == pytest.approx(3 * one["flops"], rel=0.02)
    assert (one["images"], three["images"]) == (1, 3)


@pytest.mark.parametrize("phase", sorted(set(PHASES) - {"simac", "simac_as_released"}))
def test_every_phase_can_be_called(phase):
    bench = benchmark.Bench("tiny", "cpu", 1)
    bench.config.gallery.steps = 2
    call, images = PHASES[phase](bench)
    call()
    assert images >= 1


def test_the_released_structure_wastes_operations():
    """One iteration and a short search, on one photo."""
    operations = {}
    for phase in ("simac", "simac_as_released"):
        bench = benchmark.Bench("tiny", "cpu", 1)
        bench.config.attack.surrogate_schedule.iterations = 1
        bench.config.timestep_policy.keep = 900
        call, _ = PHASES[phase](bench)
        operations[phase] = counted(call)
    assert operations["simac_as_released"] > 2 * operations["simac"] > 0


def test_a_phase_is_printed_as_json_and_fits_the_table(capsys):
    words = ["model=tiny", "phase=customizer_step", "repetitions=1", "device=cpu"]
    benchmark.main(words)
    printed = json.loads(capsys.readouterr().out)
    assert printed["images"] == 8
    assert benchmark.row(printed)[0] == "customizer step"


@pytest.mark.parametrize(
    "words", [["phase=dream"], ["modell=tiny"], ["model=/a/folder"], ["device=cuda:1"]]
)
def test_a_wrong_word_is_refused(words):
    with pytest.raises(SystemExit, match="expected"):
        benchmark.main(words)


@pytest.mark.parametrize(("name", "billions"), [("sd15", 0.86), ("sd21", 0.866)])
def test_random_models_have_the_true_number_of_weights(name, billions):
    with torch.device("meta"):
        model = random_model(name, "meta", "float32")
    weights = sum(parameter.numel() for parameter in model.unet.parameters())
    assert weights / 1e9 == pytest.approx(billions, abs=0.001)
