"""Surrogates that train adapters instead of their weights."""

from functools import partial

import pytest
import torch
from attacking import resumed
from helpers import base_weights, changed

from anticustom.attacks.inputs import SurrogateInputs
from anticustom.draws import SeededDraws


@pytest.fixture
def aspl(preset):
    """ASPL whose surrogate trains adapters."""
    return preset("aspl", "memory=12gb")


def test_the_surrogate_moves_by_its_adapters_alone(aspl, inputs_for, new_model, class_images):
    model = new_model()
    before = base_weights(model)
    draws = SeededDraws(0, "a", (4, 8, 8))
    inputs = inputs_for(aspl, surrogates=[SurrogateInputs(model, draws, lambda: class_images)])
    protected = aspl(inputs)
    after = base_weights(model)
    assert not changed(before, after)
    moved = [p for name, p in model.unet.named_parameters() if "lora_B" in name]
    assert moved
    assert sum(bool(parameter.any()) for parameter in moved) > len(moved) / 2
    assert (protected - inputs.photos).abs().max() > 0


def test_the_learning_rate_is_that_of_adapters(configured):
    rates = {
        words: configured("attack", *words).surrogate_schedule.training.learning_rate
        for words in [
            (f"attack={attack}", "surrogate_model=sd21", f"memory={memory}")
            for attack in ("aspl", "fsmg")
            for memory in ("24gb", "12gb")
        ]
    }
    assert list(rates.values()) == [5e-7, 1e-4, 5e-7, 1e-4]


def test_a_killed_attack_goes_on_and_ends_with_the_same_bytes(aspl, inputs_for):
    inputs = partial(inputs_for, aspl)
    whole = aspl(inputs())
    for kill_at in [("surrogate training", 3), ("perturbation", 3)]:
        assert torch.equal(resumed(aspl, inputs, kill_at), whole)
