"""Attacks that expect counter-measures."""

import pytest
import torch
from helpers import frozen, levels

from anticustom.countermeasures import Blur, Purify, Unchanged, transformed
from anticustom.draws import draw_batches
from anticustom.images import project, sign_step
from anticustom.losses import Denoising, FeatureInterference


def test_without_transforms_nothing_changes_and_with_them_photos_stay_within_eps(inputs_for):
    plain, none, sampled, blurred = (
        attack(inputs_for(attack))
        for attack in (
            frozen(steps=4, step_size=3),
            frozen(steps=4, step_size=3, transforms=["identity"], transform_samples=2),
            frozen(steps=4, step_size=3, transforms=["identity", "blur"], transform_samples=2),
            frozen(steps=4, step_size=3, transforms=["blur"]),
        )
    )
    photos = inputs_for(frozen()).photos
    assert ((none - plain).abs() < 1e-6).float().mean() > 0.99
    for other in (sampled, blurred):
        assert ((other - plain).abs() > 1e-3).float().mean() > 0.05
        assert max(levels(other, photos)) == pytest.approx(8, abs=1e-3)


def test_a_step_ascends_the_mean_loss_of_what_the_transforms_make(model, inputs_for):
    attack = frozen(steps=1, transforms=["blur", "crop", "jpeg"], transform_samples=3)
    inputs = inputs_for(attack)
    protected = attack(inputs)
    objective = Denoising().bind(model, prompt=attack.instance_prompt)
    (draw,) = draw_batches(
        inputs.surrogates[0].draws, "0 perturb", inputs.names, 1, [model.timesteps] * 2
    )
    key = (inputs.names, inputs.seed, inputs.identity)
    photos = inputs.photos.clone().requires_grad_()
    losses = [
        objective(transformed(attack.transforms, photos, *key, f"0 transform 0 {k}"), draw)
        for k in range(3)
    ]
    loss = sum(one["denoising"].sum() for one in losses) / 3
    gradient = torch.autograd.grad(loss, photos)[0]
    expected = project(sign_step(inputs.photos, gradient, 0.6375), inputs.photos, 8)
    assert ((protected - expected).abs() < 1e-6).float().mean() > 0.99


@pytest.mark.parametrize("reference", ["original", "phase_start"])
def test_what_a_photo_is_compared_with_goes_through_the_same_transform(
    model, inputs_for, reference
):
    loss = FeatureInterference(reference=reference, weight=1e4)
    attack = frozen(steps=2, loss=loss, transforms=["crop", "blur", "gaussian_noise"])
    inputs = inputs_for(attack)
    protected = attack(inputs)
    drawn = draw_batches(
        inputs.surrogates[0].draws, "0 perturb", inputs.names, 2, [model.timesteps] * 2
    )
    expected = inputs.photos
    for step, draw in enumerate(drawn):
        key = (inputs.names, inputs.seed, inputs.identity, f"0 transform {step} 0")
        seen = transformed(attack.transforms, inputs.photos, *key)
        objective = loss.bind(
            model,
            prompt=attack.instance_prompt,
            clean=lambda seen=seen: model.posterior(seen),
            start=lambda seen=seen: seen,
        )
        images = expected.clone().requires_grad_()
        terms = objective(transformed(attack.transforms, images, *key), draw)
        gradient = torch.autograd.grad(sum(terms.values()).sum(), images)[0]
        expected = project(sign_step(expected, gradient, 0.6375), inputs.photos, 8)
    assert ((protected - expected).abs() < 1e-6).float().mean() > 0.99


def test_transforms_are_drawn_for_each_photo(inputs_for):
    attack = frozen(steps=3, transforms=["blur", "gaussian_noise", "jpeg"])
    together = attack(inputs_for(attack))
    alone = attack(inputs_for(attack, ("b.jpg",)))
    assert ((together[1:] - alone).abs() < 1e-6).float().mean() > 0.99


def test_transforms_of_a_command_line(configured):
    blur = "{_target_: anticustom.countermeasures.Blur, sigma: 3}"
    attack = configured("attack", "attack=aspl", f"attack.transforms=[identity,{blur}]")
    assert attack.transforms == (Unchanged(), Blur(3))
    assert configured("attack", "attack=aspl").transforms == ()


def test_an_attack_ascends_through_purification(model, new_model, inputs_for):
    attack = frozen(steps=1, transforms=[Purify(timestep=40)])
    inputs = inputs_for(attack, purifier=new_model())
    protected = attack(inputs)
    objective = Denoising().bind(model, prompt=attack.instance_prompt)
    (draw,) = draw_batches(
        inputs.surrogates[0].draws, "0 perturb", inputs.names, 1, [model.timesteps] * 2
    )
    photos = inputs.photos.clone().requires_grad_()
    key = (inputs.names, inputs.seed, inputs.identity, "0 transform 0 0")
    seen = transformed([Purify(timestep=40, model=model)], photos, *key)
    loss = objective(seen, draw)["denoising"].sum()
    expected = project(
        sign_step(inputs.photos, torch.autograd.grad(loss, photos)[0], 0.6375), inputs.photos, 8
    )
    assert ((protected - expected).abs() < 1e-6).float().mean() > 0.99
    plain = frozen(steps=1)
    assert ((protected - plain(inputs_for(plain))).abs() > 1e-3).float().mean() > 0.05
