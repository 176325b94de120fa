"""Attacks that expect counter-measures."""

import pytest
from attacking import ascended, drawn, same, unlike
from helpers import frozen, levels

from anticustom.countermeasures import Blur, Purify, Unchanged, transformed, with_purifier
from anticustom.losses import Denoising, FeatureInterference
from anticustom.timestep_policies import image_gradient_and_loss


def test_without_transforms_nothing_changes_and_with_them_photos_stay_within_eps(inputs_for):
    plain, none, sampled, blurred = (
        frozen(steps=4, step_size=3, **settings)(inputs_for(frozen()))
        for settings in (
            {},
            {"transforms": ["identity"], "transform_samples": 2},
            {"transforms": ["identity", "blur"], "transform_samples": 2},
            {"transforms": ["blur"]},
        )
    )
    assert same(none, plain)
    for protected in (sampled, blurred):
        assert unlike(protected, plain)
        assert max(levels(protected, inputs_for(None).photos)) == pytest.approx(8, abs=1e-3)


@pytest.mark.parametrize(
    ("transforms", "samples", "loss", "steps"),
    [
        (["blur", "crop", "jpeg"], 3, Denoising(), 1),
        ([Purify(timestep=40)], 1, Denoising(), 1),
        *(
            (
                ["crop", "blur", "gaussian_noise"],
                1,
                FeatureInterference(reference=reference, weight=1e4),
                2,
            )
            for reference in ("original", "phase_start")
        ),
    ],
)
def test_a_step_ascends_the_mean_loss_of_what_the_transforms_make(
    model, new_model, inputs_for, transforms, samples, loss, steps
):
    """The references of the loss go through the same transform, purification through a model."""
    plain = frozen(steps=steps, loss=loss)
    attack = frozen(steps=steps, loss=loss, transforms=transforms, transform_samples=samples)
    inputs = inputs_for(attack, purifier=new_model())
    photos, draws = inputs.photos, drawn(inputs, steps)

    def of_sample(images, step, number):
        key = (inputs.names, inputs.seed, inputs.identity, f"0 transform {step} {number}")

        def seen(images):
            return transformed(with_purifier(attack.transforms, model), images, *key)

        objective = loss.bind(
            model,
            prompt=attack.instance_prompt,
            clean=lambda: model.posterior(seen(photos)),
            start=lambda: seen(photos),
        )
        return image_gradient_and_loss(
            lambda images, draw: objective(seen(images), draw), images, draws[step]
        )[0]

    def gradient(images, step):
        return sum(of_sample(images, step, number) for number in range(samples))

    protected = attack(inputs)
    assert same(protected, ascended(photos, steps, gradient))
    assert unlike(protected, plain(inputs_for(plain)))


def test_transforms_of_a_command_line(configured):
    blur = "{_target_: anticustom.countermeasures.Blur, sigma: 3}"
    attack = configured("attack", "attack=aspl", f"attack.transforms=[identity,{blur}]")
    assert attack.transforms == (Unchanged(), Blur(3))
    assert configured("attack", "attack=aspl").transforms == ()
