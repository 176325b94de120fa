import gc
import weakref
from dataclasses import replace
from functools import partial

import pytest
import torch
from attacking import NotedDraws, ascended, drawn, killed, same, unlike
from helpers import (
    PRESETS,
    SCHEDULE,
    Reports,
    changed,
    frozen,
    levels,
    parameters,
    refused,
    weights,
)

from anticustom.countermeasures import transformed
from anticustom.draws import SeededDraws
from anticustom.images import project, quantize_within
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
    assert 0 <= protected.min() <= protected.max() <= 1
    published = name.endswith("_released") and not name.startswith("simac")
    assert attack.eps == (6.375 if published else 8)
    for change in levels(protected, inputs.photos):
        assert change <= attack.eps + 1e-3
        assert change == pytest.approx(attack.eps, abs=1e-3)  # three steps of 3 reach it
    saved = quantize_within(protected, inputs.photos, attack.eps)
    assert max(levels(saved, inputs.photos)) == pytest.approx(int(attack.eps), abs=1e-3)


@pytest.mark.parametrize("name", ["simac", "fsmg"])
def test_only_the_photos_require_gradients_in_the_perturbation_loop(preset, inputs_for, name):
    attack, trained = preset(name), []
    inputs = inputs_for(attack)
    model = inputs.surrogates[0].model

    def watch(phase, done, total, loss=None):
        if phase == "surrogate training":
            trained.append({p.requires_grad for p in model.unet.parameters()})
            return
        assert not any(p.requires_grad for p in parameters(model))
        assert all(p.grad is None for p in parameters(model))

    inputs.progress = watch
    attack(inputs)
    assert trained[0] == {True}
    assert all(p.grad is None for p in parameters(model))
    assert not inputs.photos.requires_grad


def test_gradient_checkpointing_changes_no_photo(preset, inputs_for):
    attack = preset("simac")
    plain, checkpointing = inputs_for(attack), inputs_for(attack)
    checkpointing.surrogates[0].model.checkpoint_gradients()
    assert torch.equal(attack(plain), attack(checkpointing))


@pytest.mark.parametrize("name", ["fsmg", "aspl_lora", "simac"])
def test_models_do_not_outlive_the_attack(preset, inputs_for, name):
    """Otherwise they would fill a GPU's memory until Python looks for objects that hold
    themselves.
    """
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


@pytest.mark.parametrize(
    ("loss", "count"),
    [(Denoising(), 1), (Denoising(), 3), (FeatureInterference(up_blocks=(2, 3)), 3)],
)
def test_the_steps_are_sign_steps_up_the_mean_loss_over_their_draws(model, inputs_for, loss, count):
    """Each photo's gradient is that of its own loss."""
    attack = frozen(steps=3, draws_per_step=count, loss=loss)
    inputs, losses = inputs_for(attack, progress=Reports()), []
    draws = drawn(inputs, 3 * count)

    def of_photo(images, step, row):
        photo = inputs.photos[row]
        objective = loss.bind(
            model,
            prompt=attack.instance_prompt,
            clean=lambda: model.posterior(photo),
            start=lambda: photo,
        )
        of_step = draws[count * step : count * step + count]
        pairs = [image_gradient_and_loss(objective, images[row], draw[row]) for draw in of_step]
        return [sum(parts) / count for parts in zip(*pairs, strict=True)]

    def gradient(images, step):
        photos = [of_photo(images, step, slice(k, k + 1)) for k in range(2)]
        gradients, of_step = (torch.cat(parts) for parts in zip(*photos, strict=True))
        losses.append(of_step.mean().item())
        return gradients

    protected = attack(inputs)
    assert same(protected, ascended(inputs.photos, 3, gradient))
    assert [loss for *_, loss in inputs.progress] == pytest.approx(losses, rel=1e-3)
    assert inputs.progress.of("perturbation") == [1, 2, 3]
    if count > 1:
        assert unlike(protected, replace(attack, draws_per_step=1)(inputs_for(attack)))


def test_the_attack_ascends_the_loss(model, inputs_for, pictures):
    attack = frozen(steps=6, step_size=2)
    inputs = inputs_for(attack)
    objective = Denoising().bind(model, prompt=attack.instance_prompt)
    draw = SeededDraws(5, "test", model.latent_shape)("check", "x", 20, model.timesteps)
    signs = pictures(1, 7).sub(0.5).sign()

    def mean_loss(image):
        with torch.no_grad():
            return objective(image.expand(20, -1, -1, -1), draw)["denoising"].mean().item()

    for protected, photo in zip(attack(inputs), inputs.photos, strict=True):
        assert mean_loss(protected) > mean_loss(photo)
        assert mean_loss(protected) > mean_loss(project(photo + signs, photo, 8))


@pytest.mark.parametrize("transforms", [[], ["resize"]])
def test_a_loss_may_compare_with_the_originals_and_with_the_start_of_its_phase(
    new_model, inputs_for, transforms
):
    references = []

    class Noting(Denoising):
        def bind(self, model, *, prompt, clean, start):
            references.append((clean().mean, model.posterior(start()).mean))
            return super().bind(model, prompt=prompt)

    once = frozen(loss=Noting(), transforms=transforms)
    twice = replace(once, surrogate_schedule=Frozen(iterations=2))
    phases = [inputs_for(None).photos, once(inputs_for(once))]  # what each begins with
    references.clear()
    twice(inputs_for(twice))
    model, through = new_model(), partial(transformed, twice.transforms)
    key = (("a.png", "b.jpg"), 0, "ann", "any")
    seen = [through(images, *key) if transforms else images for images in phases]
    clean, later = (model.posterior(images).mean for images in seen)
    assert (clean - later).abs().max() > 1e-3
    last = references[len(references) // 2 - 1], references[-1]  # of each phase
    for (original, start), begins in zip(last, (clean, later), strict=True):
        torch.testing.assert_close(original, clean)
        torch.testing.assert_close(start, begins)


def test_steps_draw_the_timesteps_that_the_policy_allows(inputs_for):
    settings_seen, draws = {}, NotedDraws(0, "ann", (4, 8, 8))

    class Policy(Interval):
        def allowed(self, model, images, names, prompt, draws, **settings):
            settings_seen.update(
                prompt=prompt, eps=settings["eps"], step_size=settings["step_size"]
            )
            return super().allowed(model, images, names, prompt, draws, **settings)

    attack = frozen(timestep_policy=Policy(low=10, high=20))
    attack(inputs_for(attack, draws=draws))
    allowed = list(range(10, 21))
    assert draws.noted == [("0 perturb", name, 2, allowed) for name in ("a.png", "b.jpg")]
    assert settings_seen == {"prompt": attack.instance_prompt, "eps": 8, "step_size": 0.6375}


@pytest.mark.parametrize("transforms", [[], ["blur", "gaussian_noise", "jpeg"]])
def test_a_photos_protection_does_not_depend_on_the_other_photos(preset, inputs_for, transforms):
    attack = replace(preset("fsmg"), transforms=transforms)
    together = attack(inputs_for(attack))
    assert same(together[1:], attack(inputs_for(attack, ("b.jpg", "a.png")))[:1])
    assert same(together[1:], attack(inputs_for(attack, ("b.jpg",))))


@pytest.mark.parametrize(
    ("name", "kill_at", "phase", "redone"),
    [
        ("aspl", ("surrogate training", 4), "perturbation", [3, 4, 5, 6]),
        ("aspl_released", ("perturbation", 4), "perturbation", [3, 4, 5, 6]),
        ("simac", ("perturbation", 3), "perturbation", [3, 4, 5, 6]),
        ("fsmg", ("perturbation", 4), "perturbation", [4, 5, 6]),
        ("fsmg", ("surrogate training", 2), "surrogate training", [2]),
    ],
)
def test_a_killed_attack_goes_on_and_ends_with_the_same_bytes(
    preset, inputs_for, name, kill_at, phase, redone
):
    iterations = f"+{SCHEDULE}.iterations=2" if name == "fsmg" else f"{SCHEDULE}.iterations=3"
    attack = preset(name, iterations)
    whole = inputs_for(attack)
    wanted = attack(whole)
    memory = killed(attack, partial(inputs_for, attack), kill_at)
    resumed = inputs_for(attack, checkpoint=memory, progress=Reports())
    assert torch.equal(attack(resumed), wanted)
    assert not changed(weights(whole.surrogates[0].model), weights(resumed.surrogates[0].model))
    assert resumed.progress.of(phase) == redone
    assert not resumed.progress.of("greedy search")
    finished = inputs_for(attack, checkpoint=memory, progress=Reports())
    assert torch.equal(attack(finished), wanted)
    assert finished.progress == []


def test_a_loss_that_is_not_finite_names_photo_and_step(preset, inputs_for):
    class Poisoned(SeededDraws):
        def __call__(self, phase, name, count, allowed):
            draw = super().__call__(phase, name, count, allowed)
            if (phase, name) == ("1 perturb", "b.jpg"):
                draw.noise[1] = float("nan")
            return draw

    attack = preset("aspl")
    inputs = inputs_for(attack, draws=Poisoned(0, "ann", (4, 8, 8)))
    with refused(r"iteration 1.*step 1, photo b.jpg.*float32", FloatingPointError):
        attack(inputs)


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
    with refused(f"{key}="):
        frozen(**{key: value})
