from contextlib import nullcontext

import pytest
import torch
from helpers import PROMPTS, changed, parameters, refused, weights

from anticustom.draws import SeededDraws
from anticustom.finetuning import FineTuning, Trainer, all_weights, encode


class Noted:
    """Seeded draws that note their keys."""

    def __init__(self):
        self.draws, self.keys = SeededDraws(0, "ann", (4, 8, 8)), []

    def __call__(self, phase, name, count, allowed):
        self.keys.append(f"{phase} {name}")
        return self.draws(phase, name, count, allowed)


@pytest.fixture
def trainer_of(new_model):
    """Return a trainer of a new model."""

    def make(learning_rate=1e-3, parameters=all_weights, **settings) -> Trainer:
        model = new_model()
        tuning = FineTuning(learning_rate=learning_rate, **settings)
        return Trainer(model, parameters(model), tuning, **PROMPTS)

    return make


@pytest.fixture
def train(pictures):
    """Train on three photos and two class images."""

    def run(trainer, steps, draws=None, phase="fit", photos=3, class_seed=3, **more):
        instances = encode(trainer.model, "abc"[:photos], pictures(photos, 2))
        classes = encode(trainer.model, "xy", pictures(2, class_seed))
        more = {"photo_set": "clean"} | more
        return trainer.train(instances, classes, steps, draws or Noted(), phase, **more)

    return run


def largest_change(before, after) -> float:
    return max((before[name] - after[name]).abs().max().item() for name in before)


def test_it_trains_unet_and_text_encoder_and_nothing_else(trainer_of, train):
    trainer = trainer_of()
    before = weights(trainer.model)
    losses = train(trainer, 2)
    moved = changed(before, weights(trainer.model))
    assert losses.shape == (2,)
    assert losses.isfinite().all()
    names = {
        f"{part}.{name}"
        for part in ("unet", "text_encoder")
        for name, _ in getattr(trainer.model, part).named_parameters()
    }
    assert moved <= names
    assert len(moved) > 0.95 * len(names)
    assert "text_encoder.embeddings.token_embedding.weight" in {
        name.replace(".text_model.", ".") for name in moved
    }


def test_only_the_given_parameters_move(trainer_of, train):
    trainer = trainer_of(parameters=lambda model: model.unet.conv_out.parameters())
    before = weights(trainer.model)
    train(trainer, 1)
    moved = changed(before, weights(trainer.model))
    assert moved == {"unet.conv_out.weight", "unet.conv_out.bias"}


@pytest.mark.parametrize("interrupted", [False, True])
def test_no_gradient_is_left_behind(trainer_of, train, interrupted):
    trainer, during = trainer_of(), []

    def callback(step, loss):
        assert not loss.requires_grad
        during.append({p.requires_grad for p in trainer.parameters})
        if interrupted:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) if interrupted else nullcontext():
        train(trainer, 2, callback=callback)
    assert during[0] == {True}
    for parameter in parameters(trainer.model):
        assert not parameter.requires_grad
        assert parameter.grad is None


def test_the_loss_is_that_of_the_instances_plus_the_weighted_prior(trainer_of, train):
    twice, once, without = (
        train(trainer_of(prior_weight=weight), 1).item() for weight in (2.0, 1.0, 0.0)
    )
    assert without > 0
    assert twice - without == pytest.approx(2 * (once - without), rel=1e-3)
    trainers = [trainer_of(prior_weight=0.0) for _ in range(2)]
    for trainer, seed in zip(trainers, (3, 9), strict=True):
        train(trainer, 2, class_seed=seed)
    assert largest_change(*(weights(trainer.model) for trainer in trainers)) < 1e-6


def test_batches_hold_instances_and_with_a_prior_as_many_class_images(trainer_of, train):
    first = ["fit 0 instance 0 a", "fit 0 instance 1 b", "fit 0 class 0 x", "fit 0 class 1 y"]
    second = ["fit 1 instance 0 c", "fit 1 instance 1 a", "fit 1 class 0 x", "fit 1 class 1 y"]
    for prior_weight, steps, keys in [(1.0, 2, first + second), (0.0, 1, first[:2])]:
        draws = Noted()
        train(trainer_of(prior_weight=prior_weight, batch_size=2), steps, draws)
        assert draws.keys == keys


@pytest.mark.parametrize(
    ("order", "second", "class_second"),
    [("continue", ["b", "c"], ["y", "x"]), ("restart", ["a", "b"], ["x", "y"])],
)
def test_the_order_of_the_photos(trainer_of, train, order, second, class_second):
    trainer, draws = trainer_of(order=order), Noted()
    train(trainer, 1, draws)
    draws.keys.clear()
    train(trainer, 2, draws, phase="again")
    shown = [key[-1] for key in draws.keys]
    assert (shown[::2], shown[1::2]) == (second, class_second)
    draws.keys.clear()
    train(trainer, 1, draws, photo_set="protected")
    assert draws.keys[0] == "fit 0 instance 0 a"


def test_a_continuing_class_order_is_shared_by_the_photo_sets(trainer_of, train):
    trainer, draws = trainer_of(), Noted()
    train(trainer, 1, draws)
    train(trainer, 1, draws, photo_set="protected")
    assert draws.keys[1::2] == ["fit 0 class 0 x", "fit 0 class 0 y"]


@pytest.mark.parametrize(("optimizer", "steps"), [("keep", 4), ("per_call", 2)])
def test_the_optimizers_state_across_calls(trainer_of, train, optimizer, steps):
    trainer = trainer_of(optimizer=optimizer)
    train(trainer, 2)
    train(trainer, 2)
    counts = {int(state["step"]) for state in trainer.optimizer.state.values()}
    assert counts == {steps}


def test_a_rebuilt_optimizer_steps_by_signs(trainer_of, train):
    """Adam's first step is learning_rate times the gradient's sign, whatever was trained before."""
    trainer = trainer_of(optimizer="per_call", weight_decay=0.0, gradient_clip=None, epsilon=1e-30)
    train(trainer, 3)
    before = weights(trainer.model)
    train(trainer, 1)
    after = weights(trainer.model)
    steps = (after["unet.conv_out.weight"] - before["unet.conv_out.weight"]).abs()
    torch.testing.assert_close(steps, torch.full_like(steps, 1e-3), rtol=1e-2, atol=0)


def test_the_gradient_clip_is_effective(trainer_of, train):
    def norm(clip) -> float:
        trainer, norms = trainer_of(gradient_clip=clip), []

        def note(*_):
            gradients = [p.grad.flatten() for p in trainer.parameters if p.grad is not None]
            norms.append(torch.cat(gradients).norm().item())

        trainer.optimizer.register_step_pre_hook(note)
        train(trainer, 1)
        return norms[0]

    free, clipped, loose = norm(None), norm(1e-3), norm(1e3)
    assert free > 2e-3
    assert clipped == pytest.approx(1e-3, rel=1e-3)
    assert loose == pytest.approx(free, rel=1e-6)


@pytest.mark.parametrize("states", ["32bit", "8bit"])
def test_a_restored_state_goes_on_with_the_same_bytes(trainer_of, train, states):
    whole, first, second = (trainer_of(optimizer_states=states) for _ in range(3))
    kept = {}
    losses = train(whole, 4, callback=lambda step, loss: kept.setdefault(step, whole.state()))
    train(first, 2)
    tensors, facts = first.state()
    frozen = {name: value.clone() for name, value in tensors.items()}
    second.restore(tensors, facts)
    rest = train(second, 4, first_step=2)
    assert torch.equal(rest, losses[2:])
    assert not changed(weights(whole.model), weights(second.model))
    assert whole.places == second.places
    assert not changed(frozen, tensors)
    assert not changed(frozen, kept[1][0])


def test_a_state_before_any_training_can_be_restored(trainer_of, train):
    trainer = trainer_of()
    before, state = weights(trainer.model), trainer.state()
    train(trainer, 2)
    trainer.restore(*state)
    assert not changed(before, weights(trainer.model))
    assert not trainer.optimizer.state
    assert trainer.places == {}


def test_moments_of_8_bits_take_a_quarter_and_train_nearly_alike(trainer_of, train):
    """Tensors of 4096 elements or more are quantized: here the table of the words. Epsilon is above
    the gradients, so that no step depends on the sign of a gradient that rounds to nothing.
    """
    before = weights(trainer_of().model)
    trainers = {
        states: trainer_of(0.1, optimizer_states=states, epsilon=0.01)
        for states in ("32bit", "8bit")
    }
    sizes, moved = {}, {}
    for states, trainer in trainers.items():
        train(trainer, 4)
        table = trainer.model.text_encoder.get_input_embeddings().weight
        moments = trainer.optimizer.state[table].values()
        sizes[states] = sum(m.nbytes for m in moments if isinstance(m, torch.Tensor))
        after = weights(trainer.model)
        moved[states] = torch.cat([(after[name] - before[name]).flatten() for name in before])
    assert sizes["8bit"] < 0.35 * sizes["32bit"]
    assert 0 < (moved["8bit"] - moved["32bit"]).norm() < 0.02 * moved["32bit"].norm()


def test_encoding_in_chunks_changes_nothing(model, pictures):
    images = pictures(5, 0)
    whole, chunks = (encode(model, "abcde", images, batch=n) for n in (8, 2))
    assert len(whole) == 5
    assert whole.names == tuple("abcde")
    assert whole.posterior.mean.shape == (5, 4, 8, 8)
    assert not whole.posterior.mean.requires_grad
    torch.testing.assert_close(whole.posterior.mean, chunks.posterior.mean)
    torch.testing.assert_close(whole.posterior.std, chunks.posterior.std)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("learning_rate", 0),
        ("learning_rate", float("nan")),
        ("batch_size", 0),
        ("batch_size", 1.5),
        ("order", "random"),
        ("optimizer", "sgd"),
    ],
)
def test_bad_settings_are_refused(key, value):
    with refused(f"^{key}=.*expected"):
        FineTuning(**{"learning_rate": 1e-3} | {key: value})
