"""One perturbation against two surrogates of random weights."""

from dataclasses import replace

import pytest
import torch

from anticustom.attacks.inputs import SurrogateInputs
from anticustom.draws import SeededDraws, draw_batches
from anticustom.ensembles import JointLoss, MeanImage
from anticustom.timestep_policies import image_gradient_and_loss

SHORT = (
    "attack.steps=2",
    "attack.surrogate_schedule.iterations=2",
    "attack.surrogate_schedule.training_steps=1",
)


def weights(model) -> torch.Tensor:
    return torch.cat([p.flatten() for p in model.unet.parameters()])


@pytest.fixture
def two(new_model, class_images):
    """Return two surrogates: the random model, and it with other weights and other draws."""

    def make() -> list[SurrogateInputs]:
        other = new_model()
        with torch.no_grad():
            for network in (other.unet, other.vae):
                for parameter in network.parameters():
                    parameter.mul_(1.1)
        return [
            SurrogateInputs(model, SeededDraws(0, owner, (4, 8, 8)), lambda: class_images)
            for model, owner in ((new_model(), "ann"), (other, "ann other"))
        ]

    return make


@pytest.fixture
def aspl(configured):
    return configured("attack", "attack=aspl", *SHORT)


def test_the_mean_image_is_that_of_separate_perturbations(aspl, inputs_for, two):
    once = replace(aspl, surrogate_schedule=replace(aspl.surrogate_schedule, iterations=1))
    alone = [once(inputs_for(once, surrogates=[one])) for one in two()]
    attack = replace(once, combination=MeanImage())
    inputs = inputs_for(attack, surrogates=two())
    assert not torch.equal(*alone)
    torch.testing.assert_close(attack(inputs), torch.stack(alone).mean(0))


def test_each_surrogate_follows_its_own_images_under_the_mean_image(aspl, inputs_for, two):
    once = replace(aspl, surrogate_schedule=replace(aspl.surrogate_schedule, iterations=1))
    attack = replace(once, combination=MeanImage())
    together, alone = two(), two()
    attack(inputs_for(attack, surrogates=together))
    for ours, one in zip(together, alone, strict=True):
        once(inputs_for(once, surrogates=[one]))
        assert torch.equal(weights(ours.model), weights(one.model))


@pytest.mark.parametrize("name", ["e_fsmg_released", "e_aspl_released"])
def test_a_released_ensemble_stays_within_its_radius(configured, inputs_for, two, name):
    words = (*SHORT, "attack.step_size=4", "~attack.others")
    attack = configured("attack", f"attack={name}", *words)
    asked = []

    def class_images(k, images):
        asked.append(k)
        return images

    members = two()
    for k, member in enumerate(members):
        load = member.load_class_images
        member.load_class_images = lambda k=k, load=load: class_images(k, load())
    inputs = inputs_for(attack, surrogates=members)
    before = [weights(member.model).clone() for member in members]
    change = (attack(inputs) - inputs.photos).abs().amax((1, 2, 3)) * 255
    # each climbs alone as far as it may; the mean of two that disagree is nearer
    assert 0.3 * 6.375 < change.min() <= change.max() <= 6.375 + 1e-3
    for member, weights_before in zip(members, before, strict=True):
        assert not torch.equal(weights(member.model), weights_before)
    # the released E-ASPL preserves one folder of class images in all its models
    assert asked == ([0] if name == "e_aspl_released" else [0, 1])


class Owned:
    """Allows each surrogate timesteps of its own."""

    def allowed(self, model, images, names, prompt, draws, **more):
        first = draws.identity == "ann"
        return [model.timesteps[:300] if first else model.timesteps[700:]] * len(names)


@pytest.mark.parametrize("words", [["attack=advdm"], ["attack=simac_advdm", "loss.weight=1e5"]])
def test_the_joint_loss_is_the_sum_of_both(configured, inputs_for, two, words):
    """Each step moves by the sign of the sum of the gradients, found by hand; the features are
    those of the same photos in each surrogate.
    """
    attack = configured("attack", *words, "attack.steps=2")
    attack = replace(attack, timestep_policy=Owned())
    inputs = inputs_for(attack, surrogates=two())
    objectives, drawn = [], []
    for one in inputs.surrogates:
        with torch.no_grad():
            clean = one.model.posterior(inputs.photos)
        objectives.append(
            attack.loss.bind(
                one.model,
                prompt=attack.instance_prompt,
                clean=lambda clean=clean: clean,
                start=None,
            )
        )
        allowed = attack.timestep_policy.allowed(one.model, None, inputs.names, None, one.draws)
        drawn.append(draw_batches(one.draws, "0 perturb", inputs.names, 2, allowed))
    expected = alone = inputs.photos
    for draws in zip(*drawn, strict=True):
        gradients = [
            image_gradient_and_loss(objective, expected, draw)[0]
            for objective, draw in zip(objectives, draws, strict=True)
        ]
        expected = (expected + attack.step_size / 255 * sum(gradients).sign()).clamp(0, 1)
        own = image_gradient_and_loss(objectives[0], alone, draws[0])[0]
        alone = (alone + attack.step_size / 255 * own.sign()).clamp(0, 1)
    protected = attack(inputs_for(attack, surrogates=two()))
    torch.testing.assert_close(protected, expected, atol=1e-6, rtol=0)
    assert not torch.allclose(protected, alone, atol=1e-6)


def test_one_surrogate_makes_no_ensemble(aspl, inputs_for):
    first, second = (
        replace(aspl, combination=how)(inputs_for(aspl)) for how in (JointLoss(), MeanImage())
    )
    assert torch.equal(first, second)


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
    aspl, inputs_for, two, resumed, combination, kill_at
):
    attack = replace(aspl, combination=combination)
    wanted = attack(inputs_for(attack, surrogates=two()))

    def inputs(**more):
        return inputs_for(attack, surrogates=two(), **more)

    assert torch.equal(resumed(attack, inputs, kill_at), wanted)
