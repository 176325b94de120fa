"""How surrogates move while they are attacked."""

import pytest
import torch
from helpers import PROMPTS, SCHEDULE, Reports, changed, parameters, weights

from anticustom.draws import SeededDraws
from anticustom.finetuning import FineTuning, Trainer
from anticustom.progress import silent
from anticustom.surrogates import Alternating, FittedFirst, start


@pytest.mark.parametrize("name", ["aspl", "aspl_released"])
def test_aspl_puts_the_surrogate_back_after_each_phase(preset, inputs_for, name):
    attack = preset(name)
    inputs = inputs_for(attack)
    schedule, model = attack.surrogate_schedule, inputs.surrogates[0].model
    surrogate = start(
        schedule,
        model,
        inputs.surrogates[0].draws,
        clean=inputs.clean_set,
        class_images=inputs.surrogates[0].class_images,
        seed=0,
        **PROMPTS,
    )
    for iteration in range(2):
        before, (moments, _) = weights(model), surrogate.trainer.state()
        with schedule.attackable(surrogate, iteration, silent):
            during = changed(before, weights(model))
            assert not any(p.requires_grad for p in parameters(model))
        assert any(key.startswith("unet") for key in during)
        assert any(key.startswith("text_encoder") for key in during)
        assert not any(key.startswith("vae") for key in during)
        assert not changed(before, weights(model))
        assert not changed(moments, surrogate.trainer.state()[0])
        assert surrogate.trainer.places["clean"] == (
            1 if name == "aspl_released" else iteration + 1
        )
        schedule.follow(surrogate, iteration, inputs.names, inputs.photos, silent)
        assert changed(before, weights(model))


def test_aspl_holds_one_copy_of_its_surrogate(preset, inputs_for, monkeypatch):
    """Weights and moments are the most that a GPU has to hold; what is put back is copied once."""
    copies, state = [], Trainer.state

    def counted(trainer, *device):
        copies.append(trainer)
        return state(trainer, *device)

    monkeypatch.setattr(Trainer, "state", counted)
    attack = preset("aspl")
    attack(inputs_for(attack))
    assert len(copies) == attack.surrogate_schedule.iterations == 2


def test_a_surrogate_may_keep_what_it_learns_of_the_clean_set(preset, inputs_for):
    attack = preset("aspl_lora_released")
    inputs = inputs_for(attack)
    source, schedule = inputs.surrogates[0], attack.surrogate_schedule
    surrogate = start(
        schedule,
        source.model,
        source.draws,
        clean=inputs.clean_set,
        class_images=source.class_images,
        seed=0,
        **PROMPTS,
    )
    before = weights(source.model)
    with schedule.attackable(surrogate, 0, silent):
        during = weights(source.model)
    learned = changed(before, during)
    assert learned
    assert all("lora_" in name for name in learned)
    assert changed(during, weights(source.model)) == set()


def test_fsmg_fits_the_surrogate_once_and_keeps_it(inputs_for):
    schedule = FittedFirst(training=FineTuning(learning_rate=1e-3), training_steps=2, iterations=2)
    inputs, reports = inputs_for(schedule), Reports()
    surrogate = start(
        schedule,
        inputs.surrogates[0].model,
        inputs.surrogates[0].draws,
        clean=inputs.clean_set,
        class_images=inputs.surrogates[0].class_images,
        seed=0,
        **PROMPTS,
    )
    loaded = weights(inputs.surrogates[0].model)
    with schedule.attackable(surrogate, 0, reports):
        fitted = weights(inputs.surrogates[0].model)
    assert changed(loaded, fitted)
    schedule.follow(surrogate, 0, inputs.names, inputs.photos, reports)
    with schedule.attackable(surrogate, 1, reports):
        assert not changed(fitted, weights(inputs.surrogates[0].model))
    assert reports.of("surrogate training") == [1, 2]


@pytest.mark.parametrize("images", ["clean", "class_images"])
@pytest.mark.parametrize("name", ["fsmg", "aspl"])
def test_a_surrogate_learns_its_clean_set_and_the_class_images(
    preset, inputs_for, pictures, name, images
):
    attack, ends = preset(name), []
    for seed in (8, 9):
        inputs = inputs_for(attack)
        (source,) = inputs.surrogates
        given = {"clean": inputs.clean_set, "class_images": source.class_images}
        names, before = given[images]
        given[images] = names, pictures(len(before), seed)
        schedule = attack.surrogate_schedule
        surrogate = start(schedule, source.model, source.draws, seed=0, **given, **PROMPTS)
        with schedule.attackable(surrogate, 0, silent):
            ends.append(weights(source.model))
    assert changed(*ends)


def test_a_frozen_surrogate_never_moves(configured, inputs_for):
    words = ["attack=advdm", "attack.steps=2", f"+{SCHEDULE}.iterations=2"]
    attack = configured("attack", *words)
    inputs, reports = inputs_for(attack), Reports()
    inputs.progress = reports
    before = weights(inputs.surrogates[0].model)
    attack(inputs)
    assert not changed(before, weights(inputs.surrogates[0].model))
    assert reports.of("perturbation") == [1, 2, 3, 4]
    assert not reports.of("surrogate training")


def test_aspl_learns_the_photos_as_they_are_protected_so_far(preset, inputs_for):
    """Its surrogate ends elsewhere when the attack may not change the photos."""
    ends = []
    for eps in (1, 16):
        attack = preset("aspl", f"attack.eps={eps}", "attack.step_size=16")
        inputs = inputs_for(attack)
        attack(inputs)
        ends.append(weights(inputs.surrogates[0].model))
    assert changed(*ends)


@pytest.mark.parametrize(
    ("schedule", "settings"),
    [
        (Alternating, {"iterations": 0}),
        (Alternating, {"training_steps": -1}),
        (FittedFirst, {"training_steps": 1.5}),
    ],
)
def test_bad_schedules_are_refused(schedule, settings):
    (key,) = settings
    everything = {"training": FineTuning(learning_rate=1e-3), "training_steps": 1} | settings
    with pytest.raises(ValueError, match=f"surrogate_schedule.{key}=.*expected"):
        schedule(**everything)


def test_an_alternating_surrogate_asks_for_draws_by_phase_and_photo(preset, inputs_for):
    asked = []

    class Noted(SeededDraws):
        def __call__(self, phase, name, count, allowed):
            asked.append((phase, name, count))
            return super().__call__(phase, name, count, allowed)

    attack = preset("aspl")
    assert isinstance(attack.surrogate_schedule, Alternating)
    attack(inputs_for(attack, draws=Noted(0, "ann", (4, 8, 8))))
    phases = list(dict.fromkeys(phase for phase, _, _ in asked))
    assert phases == [
        f"{i} {what}"
        for i in range(2)
        for what in ("train clean 0", "perturb", "train protected 0")
    ]
    assert ("0 train clean 0", "instance 0 c.png", 1) in asked
    assert ("1 train clean 0", "instance 0 d.png", 1) in asked
    assert ("1 train protected 0", "instance 0 b.jpg", 1) in asked
    assert ("1 perturb", "a.png", 2) in asked


def test_a_surrogate_that_stands_still_needs_no_class_images(configured, inputs_for):
    def asked():
        raise AssertionError("class images were asked for")

    attack = configured("attack", "attack=advdm", "attack.steps=2")
    assert not attack.needs_class_images
    protected = attack(inputs_for(attack, load_class_images=asked))
    assert (protected - inputs_for(attack).photos).abs().max() > 0
    assert configured("attack", "attack=aspl").needs_class_images


def test_small_steps_of_training_round_away_in_bfloat16(preset, inputs_for):
    """Three steps of 5e-7, as in the papers: of what float32 weights move, few move at all."""
    moved = {}
    for precision in ("float32", "bfloat16"):
        attack = preset(
            "aspl",
            f"attack.training_precision={precision}",
            f"{SCHEDULE}.training.learning_rate=5e-7",
            f"{SCHEDULE}.training_steps=3",
        )
        inputs = inputs_for(attack)
        network = inputs.surrogates[0].model
        before = weights(network)

        def watch(what, done, total, loss=None, own=precision, network=network, before=before):
            if what == "surrogate training" and done == 3:
                after = weights(network)
                unlike = [(before[name] != after[name]).flatten() for name in before]
                moved[own] = torch.cat(unlike)

        inputs.progress = watch
        attack(inputs)
    # the others are in kernels that only ever see padding, and tokens that no prompt has
    assert moved["float32"].sum() > 40_000
    assert moved["bfloat16"][moved["float32"]].float().mean() < 0.1


@pytest.mark.parametrize("precision", ["float32", "mixed", "bfloat16"])
@pytest.mark.parametrize("training", ["float32", "bfloat16"])
def test_steps_and_training_have_a_precision_each(preset, inputs_for, precision, training):
    """Whatever the steps compute in, what the surrogate learns before them is the same."""
    words = [f"attack.training_precision={training}", f"attack.precision={precision}"]
    attack = preset("fsmg", *words)
    inputs = inputs_for(attack)
    network = inputs.surrogates[0].model
    seen = []

    def watch(what, done, total, loss=None):
        seen.append((what, network.unet.dtype, network.mixed))

    inputs.progress = watch
    protected = attack(inputs)
    dtypes = {"float32": torch.float32, "mixed": torch.float32, "bfloat16": torch.bfloat16}
    assert set(seen) == {
        ("surrogate training", dtypes[training], False),
        ("perturbation", dtypes[precision], precision == "mixed"),
    }
    alone = preset("fsmg", f"attack.training_precision={training}", f"attack.precision={training}")
    others = inputs_for(alone)
    same = alone(others)
    assert changed(weights(network), weights(others.surrogates[0].model)) == set()
    assert torch.equal(protected, same) == (precision == training)
