import gc
import weakref
from dataclasses import replace
from functools import partial

import pytest
import torch
from helpers import (
    PRESETS,
    SCHEDULE,
    Killed,
    Memory,
    Reports,
    changed,
    frozen,
    levels,
    parameters,
    weights,
)

from anticustom.countermeasures import transformed
from anticustom.draws import SeededDraws, draw_batches
from anticustom.images import project, quantize_within, sign_step
from anticustom.losses import Denoising, FeatureInterference
from anticustom.surrogates import Frozen
from anticustom.timestep_policies import Interval, image_gradient_and_loss


@pytest.mark.parametrize("name", PRESETS)
def test_attacks_change_every_photo_within_eps(preset, inputs_for, name):
    attack = preset(name, "attack.step_size=3")
    inputs = inputs_for(attack)
    protected = attack(inputs)
    assert protected.shape == inputs.photos.shape
    assert protected.dtype == torch.float32
    assert protected.min() >= 0
    assert protected.max() <= 1
    published = name.endswith("_released") and not name.startswith("simac")
    assert attack.eps == (6.375 if published else 8)
    for change in levels(protected, inputs.photos):
        assert change <= attack.eps + 1e-3
        assert change == pytest.approx(attack.eps, abs=1e-3)  # three steps of 3 reach it
    saved = quantize_within(protected, inputs.photos, attack.eps)
    assert max(levels(saved, inputs.photos)) == pytest.approx(int(attack.eps), abs=1e-3)


@pytest.mark.parametrize("name", ["simac", "fsmg"])
def test_only_the_photos_require_gradients_in_the_perturbation_loop(preset, inputs_for, name):
    attack = preset(name)
    inputs = inputs_for(attack)
    trained = []

    def watch(what, done, total, loss=None):
        wanted = {p.requires_grad for p in inputs.surrogates[0].model.unet.parameters()}
        if what == "surrogate training":
            trained.append(wanted)
            return
        assert not any(p.requires_grad for p in parameters(inputs.surrogates[0].model))
        assert all(p.grad is None for p in parameters(inputs.surrogates[0].model))

    inputs.progress = watch
    attack(inputs)
    assert trained[0] == {True}
    assert all(p.grad is None for p in parameters(inputs.surrogates[0].model))
    assert not inputs.photos.requires_grad


def test_gradient_checkpointing_changes_no_photo(preset, inputs_for):
    attack = preset("simac")
    protected = []
    for checkpointing in (False, True):
        inputs = inputs_for(attack)
        if checkpointing:
            inputs.surrogates[0].model.checkpoint_gradients()
        protected.append(attack(inputs))
    assert torch.equal(*protected)


@pytest.mark.parametrize("name", ["fsmg", "aspl_lora", "simac"])
def test_models_do_not_outlive_the_attack(preset, inputs_for, name):
    """Else the memory of a GPU would be theirs until Python looks for what holds itself."""
    attack = preset(name)
    inputs = inputs_for(attack)
    unet = weakref.ref(inputs.surrogates[0].model.unet)
    gc.disable()
    try:
        attack(inputs)
        del inputs
        assert unet() is None
    finally:
        gc.enable()


def test_the_steps_are_sign_steps_up_the_loss(model, inputs_for):
    attack = frozen(steps=3)
    inputs = inputs_for(attack)
    reports = inputs.progress = Reports()
    protected = attack(inputs)
    expected, losses = inputs.photos, []
    drawn = [
        inputs.surrogates[0].draws("0 perturb", name, 3, model.timesteps) for name in inputs.names
    ]
    objective = Denoising().bind(model, prompt=attack.instance_prompt)
    for step in range(3):
        rows = [
            image_gradient_and_loss(objective, expected[k : k + 1], drawn[k][step : step + 1])
            for k in range(2)
        ]
        losses.append(torch.cat([loss for _, loss in rows]).mean().item())
        gradient = torch.cat([gradient for gradient, _ in rows])
        expected = project(sign_step(expected, gradient, 0.6375), inputs.photos, 8)
    assert [loss for *_, loss in reports] == pytest.approx(losses, rel=1e-3)
    assert reports.of("perturbation") == [1, 2, 3]
    assert ((protected - expected).abs() < 1e-6).float().mean() > 0.99


def test_the_attack_ascends_the_loss(model, inputs_for, pictures):
    attack = frozen(steps=6, step_size=2)
    inputs = inputs_for(attack)
    protected = attack(inputs)
    objective = Denoising().bind(model, prompt=attack.instance_prompt)
    draw = SeededDraws(5, "test", model.latent_shape)("check", "x", 20, model.timesteps)
    signs = pictures(1, 7).sub(0.5).sign()

    def mean_loss(image):
        with torch.no_grad():
            return objective(image.expand(20, -1, -1, -1), draw)["denoising"].mean().item()

    for k in range(2):
        photo = inputs.photos[k : k + 1]
        assert mean_loss(protected[k : k + 1]) > mean_loss(photo)
        assert mean_loss(protected[k : k + 1]) > mean_loss(project(photo + signs, photo, 8))


@pytest.mark.parametrize("transforms", [[], ["resize"]])
def test_a_loss_may_compare_with_the_originals_and_with_the_start_of_its_phase(
    new_model, inputs_for, transforms
):
    given = []

    class Noting(Denoising):
        def bind(self, model, *, prompt, clean, start):
            given.append((clean().mean, model.posterior(start()).mean))
            return super().bind(model, prompt=prompt)

    settings = {"loss": Noting(), "transforms": transforms}
    phases = [inputs_for(None).photos]  # what each begins with
    once = frozen(**settings)
    phases.append(once(inputs_for(once)))
    given.clear()
    twice = frozen(**settings, surrogate_schedule=Frozen(iterations=2))
    twice(inputs_for(twice))
    model, through = new_model(), partial(transformed, twice.transforms)
    key = (("a.png", "b.jpg"), 0, "ann")
    seen = [through(images, *key, "any") if transforms else images for images in phases]
    clean, later = (model.posterior(images).mean for images in seen)
    assert (clean - later).abs().max() > 1e-3
    bound = given[len(given) // 2 - 1], given[-1]
    for (original, begun), begins in zip(bound, (clean, later), strict=True):
        torch.testing.assert_close(original, clean)
        torch.testing.assert_close(begun, begins)


def test_steps_draw_the_timesteps_that_the_policy_allows(inputs_for):
    asked, drawn = {}, []

    class Policy(Interval):
        def allowed(self, model, images, names, prompt, draws, **settings):
            asked.update(prompt=prompt, eps=settings["eps"], step_size=settings["step_size"])
            return super().allowed(model, images, names, prompt, draws, **settings)

    class Noting(SeededDraws):
        def __call__(self, phase, name, count, allowed):
            drawn.append((phase, name, allowed.tolist()))
            return super().__call__(phase, name, count, allowed)

    attack = frozen(timestep_policy=Policy(low=10, high=20))
    attack(inputs_for(attack, draws=Noting(0, "ann", (4, 8, 8))))
    allowed = list(range(10, 21))
    assert drawn == [("0 perturb", name, allowed) for name in ("a.png", "b.jpg")]
    assert asked == {"prompt": attack.instance_prompt, "eps": 8, "step_size": 0.6375}


@pytest.mark.parametrize("loss", [Denoising(), FeatureInterference(up_blocks=(2, 3))])
def test_a_step_ascends_the_mean_loss_over_its_draws(model, inputs_for, loss):
    attack = frozen(steps=2, draws_per_step=3, loss=loss)
    inputs = inputs_for(attack)
    protected = attack(inputs)
    objective = loss.bind(
        model,
        prompt=attack.instance_prompt,
        clean=lambda: model.posterior(inputs.photos),
        start=lambda: inputs.photos,
    )
    drawn = draw_batches(
        inputs.surrogates[0].draws, "0 perturb", inputs.names, 6, [model.timesteps] * 2
    )
    expected = inputs.photos
    for step in range(2):
        gradients = [
            image_gradient_and_loss(objective, expected, draw)[0]
            for draw in drawn[3 * step : 3 * step + 3]
        ]
        expected = project(sign_step(expected, sum(gradients), 0.6375), inputs.photos, 8)
    assert ((protected - expected).abs() < 1e-6).float().mean() > 0.99
    one = replace(attack, draws_per_step=1)(inputs_for(attack))
    assert ((protected - one).abs() > 1e-3).float().mean() > 0.05


def test_a_photos_protection_does_not_depend_on_the_other_photos(preset, inputs_for):
    attack = preset("fsmg")
    together = attack(inputs_for(attack))
    turned = attack(inputs_for(attack, ("b.jpg", "a.png")))
    alone = attack(inputs_for(attack, ("b.jpg",)))
    for other in (turned[:1], alone):
        assert ((together[1:] - other).abs() < 1e-6).float().mean() > 0.99


@pytest.mark.parametrize(
    ("name", "kill_at", "redone"),
    [
        ("aspl", ("surrogate training", 4), [3, 4, 5, 6]),
        ("aspl_released", ("perturbation", 4), [3, 4, 5, 6]),
        ("simac", ("perturbation", 3), [3, 4, 5, 6]),
        ("fsmg", ("perturbation", 4), [4, 5, 6]),
    ],
)
def test_a_killed_attack_goes_on_and_ends_with_the_same_bytes(
    preset, inputs_for, name, kill_at, redone
):
    iterations = f"+{SCHEDULE}.iterations=2" if name == "fsmg" else f"{SCHEDULE}.iterations=3"
    attack = preset(name, iterations)
    whole = inputs_for(attack)
    wanted = attack(whole)

    memory = Memory()
    with pytest.raises(Killed):
        attack(inputs_for(attack, checkpoint=memory, progress=Reports(kill_at)))
    resumed = inputs_for(attack, checkpoint=memory, progress=Reports())
    protected = attack(resumed)
    assert torch.equal(protected, wanted)
    assert not changed(weights(whole.surrogates[0].model), weights(resumed.surrogates[0].model))
    assert resumed.progress.of("perturbation") == redone
    assert not resumed.progress.of("greedy search")


def test_a_killed_fit_goes_on_where_it_was(preset, inputs_for):
    attack, memory = preset("fsmg"), Memory()
    whole = inputs_for(attack)
    wanted = attack(whole)
    with pytest.raises(Killed):
        attack(inputs_for(attack, checkpoint=memory, progress=Reports(("surrogate training", 2))))
    resumed = inputs_for(attack, checkpoint=memory, progress=Reports())
    assert torch.equal(attack(resumed), wanted)
    assert not changed(weights(whole.surrogates[0].model), weights(resumed.surrogates[0].model))
    assert resumed.progress.of("surrogate training") == [2]


def test_a_finished_attack_is_not_done_again(preset, inputs_for):
    attack, memory = preset("aspl"), Memory()
    wanted = attack(inputs_for(attack, checkpoint=memory))
    again = inputs_for(attack, checkpoint=memory, progress=Reports())
    assert torch.equal(attack(again), wanted)
    assert again.progress == []


def test_a_loss_that_is_not_finite_names_photo_and_step(preset, inputs_for):
    class Poisoned(SeededDraws):
        def __call__(self, phase, name, count, allowed):
            draw = super().__call__(phase, name, count, allowed)
            if (phase, name) == ("1 perturb", "b.jpg"):
                draw.noise[1] = float("nan")
            return draw

    attack = preset("aspl")
    inputs = inputs_for(attack, draws=Poisoned(0, "ann", (4, 8, 8)))
    with pytest.raises(
        FloatingPointError, match=r"iteration 1.*step 1, photo b.jpg.*float32"
    ) as error:
        attack(inputs)
    assert "\n" not in str(error.value)


def test_a_broken_weight_is_noticed(preset, inputs_for):
    attack = preset("simac")
    inputs = inputs_for(attack)
    with torch.no_grad():
        inputs.surrogates[0].model.unet.conv_in.weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match=r"iteration 0, perturbation step 0, photo a.png"):
        attack(inputs)


@pytest.mark.parametrize(
    ("key", "value"),
    [("eps", 0.03), ("eps", 300), ("step_size", 0), ("steps", 0), ("transform_samples", 0)],
)
def test_bad_settings_are_refused(key, value):
    with pytest.raises(ValueError, match=f"{key}=") as error:
        frozen(**{key: value})
    assert "\n" not in str(error.value)
