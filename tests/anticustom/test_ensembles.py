"""One perturbation against two surrogates of random weights."""

from dataclasses import replace

import pytest
import torch
from attacking import resumed
from helpers import changed, levels, weights

from anticustom.attacks.inputs import SurrogateInputs
from anticustom.draws import SeededDraws, draw_batches
from anticustom.ensembles import JointLoss, MeanImage
from anticustom.timestep_policies import image_gradient_and_loss


@pytest.fixture
def two(new_model, class_images):
    """Return two surrogates: the random model, and it with other weights and other draws."""

    def make() -> list[SurrogateInputs]:
        first, second = new_model(), new_model()
        with torch.no_grad():
            for parameter in (*second.unet.parameters(), *second.vae.parameters()):
                parameter.mul_(1.1)
        return [
            SurrogateInputs(model, SeededDraws(0, owner, (4, 8, 8)), lambda: class_images)
            for model, owner in ((first, "ann"), (second, "ann other"))
        ]

    return make


def test_the_mean_image_is_that_of_separate_perturbations(preset, inputs_for, two):
    """Each surrogate follows the images that were perturbed for it alone."""
    once = preset("aspl", "attack.surrogate_schedule.iterations=1")
    mean = replace(once, combination=MeanImage())
    together, apart = two(), two()
    alone = [once(inputs_for(once, surrogates=[surrogate])) for surrogate in apart]
    assert not torch.equal(*alone)
    protected = mean(inputs_for(mean, surrogates=together))
    torch.testing.assert_close(protected, torch.stack(alone).mean(0))
    for surrogate, separate in zip(together, apart, strict=True):
        assert not changed(weights(surrogate.model), weights(separate.model))


@pytest.mark.parametrize("name", ["e_fsmg_released", "e_aspl_released"])
def test_a_released_ensemble_stays_within_its_radius(configured, inputs_for, two, name):
    schedule = "attack.surrogate_schedule"
    words = [f"attack={name}", "attack.steps=2", "attack.step_size=4", "~attack.others"]
    words += [f"{schedule}.iterations=2", f"{schedule}.training_steps=1"]
    attack, loads = configured("attack", *words), []

    def noting(number, load):
        def noted():
            loads.append(number)
            return load()

        return noted

    surrogates = two()
    for number, surrogate in enumerate(surrogates):
        surrogate.load_class_images = noting(number, surrogate.load_class_images)
    inputs = inputs_for(attack, surrogates=surrogates)
    before = [weights(surrogate.model) for surrogate in surrogates]
    change = levels(attack(inputs), inputs.photos)
    # each climbs alone as far as it may; the mean of two that disagree is nearer
    assert 0.3 * 6.375 < min(change) <= max(change) <= 6.375 + 1e-3
    for surrogate, weights_before in zip(surrogates, before, strict=True):
        moved = changed(weights_before, weights(surrogate.model))
        assert any(key.startswith("unet") for key in moved)
    # the released E-ASPL preserves one folder of class images in all its models
    assert loads == ([0] if name == "e_aspl_released" else [0, 1])


class Owned:
    """Allows each surrogate timesteps of its own."""

    def allowed(self, model, images, names, prompt, draws, **settings):
        first = draws.identity == "ann"
        return [model.timesteps[:300] if first else model.timesteps[700:]] * len(names)


@pytest.mark.parametrize("words", [["attack=advdm"], ["attack=simac_advdm", "loss.weight=1e5"]])
def test_the_joint_loss_is_the_sum_of_both(configured, inputs_for, two, words):
    """Each step moves by the sign of the sum of the gradients, found by hand. The features are
    those of the same photos in each surrogate.
    """
    attack = configured("attack", *words, "attack.steps=2")
    attack = replace(attack, timestep_policy=Owned())
    inputs = inputs_for(attack, surrogates=two())

    def bound(source: SurrogateInputs):
        with torch.no_grad():
            clean = source.model.posterior(inputs.photos)
        prompt = attack.instance_prompt
        return attack.loss.bind(source.model, prompt=prompt, clean=lambda: clean, start=None)

    def drawn(source: SurrogateInputs):
        allowed = Owned().allowed(source.model, None, inputs.names, None, source.draws)
        return draw_batches(source.draws, "0 perturb", inputs.names, 2, allowed)

    objectives = [bound(source) for source in inputs.surrogates]
    draws = [drawn(source) for source in inputs.surrogates]

    def climbed(count: int) -> torch.Tensor:
        """Return the photos after steps up the sum of the first `count` surrogates' losses."""
        images = inputs.photos
        for step in range(2):
            gradients = [
                image_gradient_and_loss(objectives[k], images, draws[k][step])[0]
                for k in range(count)
            ]
            images = (images + attack.step_size / 255 * sum(gradients).sign()).clamp(0, 1)
        return images

    protected = attack(inputs)
    torch.testing.assert_close(protected, climbed(2), atol=1e-6, rtol=0)
    assert not torch.allclose(protected, climbed(1), atol=1e-6)


def test_one_surrogate_makes_no_ensemble(preset, inputs_for):
    aspl = preset("aspl")
    mean = replace(aspl, combination=MeanImage())
    assert torch.equal(aspl(inputs_for(aspl)), mean(inputs_for(mean)))


@pytest.mark.parametrize(
    ("combination", "kill_at"),
    [
        (JointLoss(), ("surrogate training", 3)),
        (JointLoss(), ("perturbation", 3)),
        (MeanImage(), ("surrogate training", 3)),
        (MeanImage(), ("perturbation", 5)),  # each surrogate climbs two steps in an iteration
    ],
)
def test_a_killed_ensemble_goes_on_and_ends_with_the_same_bytes(
    preset, inputs_for, two, combination, kill_at
):
    attack = replace(preset("aspl"), combination=combination)

    def inputs(**settings):
        return inputs_for(attack, surrogates=two(), **settings)

    assert torch.equal(resumed(attack, inputs, kill_at), attack(inputs()))
