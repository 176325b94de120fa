"""How surrogates move while they are attacked."""

import pytest
import torch
from attacking import NotedDraws
from helpers import PROMPTS, SCHEDULE, Reports, changed, parameters, weights

from anticustom.finetuning import FineTuning, Trainer
from anticustom.progress import silent
from anticustom.surrogates import Alternating, FittedFirst, start


def started(schedule, inputs, **sets):
    """Return the surrogate of an attack's inputs, with some of its photo sets changed."""
    (source,) = inputs.surrogates
    sets = {"clean": inputs.clean_set, "class_images": source.class_images} | sets
    return start(schedule, source.model, source.draws, seed=0, **sets, **PROMPTS)


def attackable(schedule, surrogate, iteration=0, progress=silent):
    """Return the context in which an iteration attacks the surrogate, which is never saved."""
    return schedule.attackable(surrogate, iteration, progress, lambda: None)


@pytest.mark.parametrize("name", ["aspl", "aspl_released"])
def test_aspl_puts_the_surrogate_back_after_each_phase(preset, inputs_for, name):
    attack = preset(name)
    inputs, schedule = inputs_for(attack), attack.surrogate_schedule
    surrogate = started(schedule, inputs)
    model, trainer = surrogate.model, surrogate.trainer
    for iteration in range(2):
        before, (moments, _) = weights(model), trainer.state()
        with attackable(schedule, surrogate, iteration):
            during = changed(before, weights(model))
            assert not any(p.requires_grad for p in parameters(model))
        assert {key.partition(".")[0] for key in during} == {"unet", "text_encoder"}
        assert not changed(before, weights(model))
        assert not changed(moments, trainer.state()[0])
        assert trainer.places["clean"] == (1 if name == "aspl_released" else iteration + 1)
        schedule.follow(surrogate, iteration, inputs.names, inputs.photos, silent)
        assert changed(before, weights(model))


def test_aspl_holds_one_copy_of_its_surrogate(preset, inputs_for, monkeypatch):
    """Weights and moments are the most that a GPU has to hold, so they are copied once."""
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
    surrogate = started(attack.surrogate_schedule, inputs_for(attack))
    before = weights(surrogate.model)
    with attackable(attack.surrogate_schedule, surrogate):
        during = weights(surrogate.model)
    learned = changed(before, during)
    assert learned
    assert all("lora_" in name for name in learned)
    assert not changed(during, weights(surrogate.model))


def test_fsmg_fits_the_surrogate_once_and_keeps_it(inputs_for):
    schedule = FittedFirst(training=FineTuning(learning_rate=1e-3), training_steps=2, iterations=2)
    inputs, reports = inputs_for(schedule), Reports()
    surrogate = started(schedule, inputs)
    loaded = weights(surrogate.model)
    with attackable(schedule, surrogate, 0, reports):
        fitted = weights(surrogate.model)
    assert changed(loaded, fitted)
    schedule.follow(surrogate, 0, inputs.names, inputs.photos, reports)
    with attackable(schedule, surrogate, 1, reports):
        assert not changed(fitted, weights(surrogate.model))
    assert reports.of("surrogate training") == [1, 2]


@pytest.mark.parametrize("images", ["clean", "class_images"])
@pytest.mark.parametrize("name", ["fsmg", "aspl"])
def test_a_surrogate_learns_its_clean_set_and_the_class_images(
    preset, inputs_for, pictures, name, images
):
    attack, ends = preset(name), []
    names = ("0.png", "1.png", "2.png")
    for seed in (8, 9):
        sets = {images: (names, pictures(3, seed))}
        surrogate = started(attack.surrogate_schedule, inputs_for(attack), **sets)
        with attackable(attack.surrogate_schedule, surrogate):
            ends.append(weights(surrogate.model))
    assert changed(*ends)


def test_a_frozen_surrogate_never_moves(configured, inputs_for):
    words = ["attack=advdm", "attack.steps=2", f"+{SCHEDULE}.iterations=2"]
    attack = configured("attack", *words)
    inputs = inputs_for(attack, progress=Reports())
    before = weights(inputs.surrogates[0].model)
    attack(inputs)
    assert not changed(before, weights(inputs.surrogates[0].model))
    assert inputs.progress.of("perturbation") == [1, 2, 3, 4]
    assert not inputs.progress.of("surrogate training")


def test_aspl_learns_the_photos_as_they_are_protected_so_far(preset, inputs_for):
    """Its surrogate ends elsewhere when the attack may hardly change the photos."""
    ends = []
    for eps in (1, 16):
        attack = preset("aspl", f"attack.eps={eps}", "attack.step_size=16")
        inputs = inputs_for(attack)
        attack(inputs)
        ends.append(weights(inputs.surrogates[0].model))
    assert changed(*ends)


@pytest.mark.parametrize(
    ("schedule", "key", "value"),
    [
        (Alternating, "iterations", 0),
        (Alternating, "training_steps", -1),
        (FittedFirst, "training_steps", 1.5),
    ],
)
def test_bad_schedules_are_refused(schedule, key, value):
    settings = {"training": FineTuning(learning_rate=1e-3), "training_steps": 1} | {key: value}
    with pytest.raises(ValueError, match=f"surrogate_schedule.{key}=.*expected"):
        schedule(**settings)


def test_an_alternating_surrogate_asks_for_draws_by_phase_and_photo(preset, inputs_for):
    attack, draws = preset("aspl"), NotedDraws(0, "ann", (4, 8, 8))
    assert isinstance(attack.surrogate_schedule, Alternating)
    attack(inputs_for(attack, draws=draws))
    calls = [(phase, name, count) for phase, name, count, _ in draws.noted]
    assert list(dict.fromkeys(phase for phase, _, _ in calls)) == [
        f"{i} {what}"
        for i in range(2)
        for what in ("train clean 0", "perturb", "train protected 0")
    ]
    assert {
        ("0 train clean 0", "instance 0 c.png", 1),
        ("1 train clean 0", "instance 0 d.png", 1),
        ("1 train protected 0", "instance 0 b.jpg", 1),
        ("1 perturb", "a.png", 2),
    } <= set(calls)


def test_a_surrogate_that_stands_still_needs_no_class_images(configured, inputs_for):
    def refusing():
        raise AssertionError("class images were asked for")

    attack = configured("attack", "attack=advdm", "attack.steps=2")
    assert not attack.needs_class_images
    inputs = inputs_for(attack, load_class_images=refusing)
    assert (attack(inputs) - inputs.photos).abs().max() > 0
    assert configured("attack", "attack=aspl").needs_class_images


def test_small_steps_of_training_round_away_in_bfloat16(preset, inputs_for):
    """Three steps of 5e-7, as in the papers: of what float32 weights move, few move at all."""

    def moved(precision: str) -> torch.Tensor:
        attack = preset(
            "aspl",
            f"attack.training_precision={precision}",
            f"{SCHEDULE}.training.learning_rate=5e-7",
            f"{SCHEDULE}.training_steps=3",
        )
        surrogate = started(attack.surrogate_schedule, inputs_for(attack))
        before = weights(surrogate.model)
        with attackable(attack.surrogate_schedule, surrogate):
            after = weights(surrogate.model)
        return torch.cat([(before[name] != after[name]).flatten() for name in before])

    whole, rounded = moved("float32"), moved("bfloat16")
    # the others are in kernels that only ever see padding, and tokens that no prompt has
    assert whole.sum() > 40_000
    assert rounded[whole].float().mean() < 0.1


@pytest.mark.parametrize("precision", ["float32", "mixed", "bfloat16"])
@pytest.mark.parametrize("training", ["float32", "bfloat16"])
def test_steps_and_training_have_a_precision_each(preset, inputs_for, precision, training):
    """The surrogate learns the same before the steps, whatever they compute in."""

    def protected(precision: str):
        words = [f"attack.training_precision={training}", f"attack.precision={precision}"]
        attack = preset("fsmg", *words)
        inputs, seen = inputs_for(attack), set()
        network = inputs.surrogates[0].model

        def watch(phase, done, total, loss=None):
            seen.add((phase, network.unet.dtype, network.mixed))

        inputs.progress = watch
        return attack(inputs), weights(network), seen

    images, learned, seen = protected(precision)
    same_images, same_learned, _ = protected(training)
    dtypes = {"float32": torch.float32, "mixed": torch.float32, "bfloat16": torch.bfloat16}
    assert seen == {
        ("surrogate training", dtypes[training], False),
        ("perturbation", dtypes[precision], precision == "mixed"),
    }
    assert not changed(learned, same_learned)
    assert torch.equal(images, same_images) == (precision == training)
