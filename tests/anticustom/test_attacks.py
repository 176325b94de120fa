import json
from dataclasses import replace

import pytest
import torch

from anticustom.attacks.controls import NoAttack, Noise, Precomputed
from anticustom.attacks.pgd import PGD
from anticustom.countermeasures import Blur, Unchanged, transformed
from anticustom.draws import SeededDraws, draw_batches
from anticustom.finetuning import FineTuning
from anticustom.images import project, quantize_within, sign_step, write_png
from anticustom.losses import Denoising, FeatureInterference
from anticustom.progress import silent
from anticustom.surrogates import Alternating, FittedFirst, Frozen, start
from anticustom.timestep_policies import Uniform, image_gradient_and_loss

PROMPTS = {"instance_prompt": "a photo of sks person", "class_prompt": "a photo of person"}
SCHEDULE = "attack.surrogate_schedule"
TWICE = ("attack.steps=2", f"{SCHEDULE}.iterations=2", f"{SCHEDULE}.training_steps=1")
PRESETS = {
    "fsmg": ("attack.steps=3", f"{SCHEDULE}.training_steps=2"),
    "aspl": TWICE,
    "simac": (*TWICE, "timestep_policy.keep=900"),
    "aspl_released": TWICE,
    "simac_released": (*TWICE, "timestep_policy.keep=900"),
}
NETWORKS = ("vae", "unet", "text_encoder")


@pytest.fixture
def preset(configured):
    """Return the attack of a YAML, shortened."""

    def make(name: str, *overrides: str) -> PGD:
        return configured("attack", f"attack={name}", *PRESETS[name], *overrides)

    return make


class Reports(list):
    """What progress was told: (what, done, total, loss); raises Killed at one of the reports."""

    def __init__(self, kill_at=None):
        self.kill_at = kill_at

    def __call__(self, what, done, total, loss=None):
        self.append((what, done, total, float(loss)))
        if (what, done) == self.kill_at:
            raise Killed

    def of(self, kind: str) -> list[int]:
        return [done for what, done, *_ in self if what == kind]


class Killed(Exception):
    pass


class Memory:
    """A checkpoint that is always due; what it keeps could as well be on disk."""

    def __init__(self):
        self.saved = None

    def load(self):
        return self.saved

    def due(self):
        return True

    def save(self, tensors, facts):
        copies = {name: tensor.clone() for name, tensor in tensors.items()}
        self.saved = copies, json.loads(json.dumps(facts))


def weights(model) -> dict[str, torch.Tensor]:
    return {
        f"{part}.{name}": value.clone()
        for part in NETWORKS
        for name, value in getattr(model, part).state_dict().items()
    }


def changed(before, after) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


def parameters(model):
    return [p for part in NETWORKS for p in getattr(model, part).parameters()]


def levels(images, photos) -> float:
    return ((images - photos).abs().amax((1, 2, 3)) * 255).tolist()


def frozen(**changed) -> PGD:
    settings = {
        "eps": 8,
        "step_size": 0.6375,
        "steps": 2,
        "loss": Denoising(),
        "timestep_policy": Uniform(),
        "surrogate_schedule": Frozen(),
    }
    return PGD(**settings | PROMPTS | changed)


@pytest.mark.parametrize("name", PRESETS)
def test_attacks_change_every_photo_within_eps(preset, inputs_for, name):
    attack = preset(name, "attack.step_size=3")
    inputs = inputs_for(attack)
    protected = attack(inputs)
    assert protected.shape == inputs.photos.shape
    assert protected.dtype == torch.float32
    assert protected.min() >= 0
    assert protected.max() <= 1
    assert attack.eps == (6.375 if name == "aspl_released" else 8)
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


@pytest.mark.parametrize("loss", [Denoising(), FeatureInterference(up_blocks=(2, 3))])
def test_a_step_ascends_the_mean_loss_over_its_draws(model, inputs_for, loss):
    attack = frozen(steps=2, draws_per_step=3, loss=loss)
    inputs = inputs_for(attack)
    protected = attack(inputs)
    with torch.no_grad():
        clean = model.posterior(inputs.photos)
    objective = loss.bind(model, prompt=attack.instance_prompt, clean=clean, start=inputs.photos)
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


def test_a_photos_protection_does_not_depend_on_the_other_photos(preset, inputs_for):
    attack = preset("fsmg")
    together = attack(inputs_for(attack))
    turned = attack(inputs_for(attack, ("b.jpg", "a.png")))
    alone = attack(inputs_for(attack, ("b.jpg",)))
    for other in (turned[:1], alone):
        assert ((together[1:] - other).abs() < 1e-6).float().mean() > 0.99


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
        class_images=inputs.class_images,
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


def test_fsmg_fits_the_surrogate_once_and_keeps_it(inputs_for):
    schedule = FittedFirst(training=FineTuning(learning_rate=1e-3), training_steps=2, iterations=2)
    inputs, reports = inputs_for(schedule), Reports()
    surrogate = start(
        schedule,
        inputs.surrogates[0].model,
        inputs.surrogates[0].draws,
        clean=inputs.clean_set,
        class_images=inputs.class_images,
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


def test_a_frozen_surrogate_never_moves_and_needs_no_class_images(inputs_for):
    attack = frozen(surrogate_schedule=Frozen(iterations=2))
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


def test_the_placebo_is_random_signs_times_eps(inputs_for, pictures):
    attack = Noise(eps=5)
    inputs = inputs_for(attack)
    before = inputs.photos.clone()
    protected = attack(inputs)
    change = (protected - before) * 255
    inside = (before > 5.5 / 255) & (before < 249.5 / 255)
    torch.testing.assert_close(
        change[inside].abs(), torch.full_like(change[inside], 5), atol=1e-3, rtol=0
    )
    assert change[inside].mean().abs() < 0.2
    assert protected.min() >= 0
    assert protected.max() <= 1
    assert torch.equal(inputs.photos, before)
    assert torch.equal(attack(inputs_for(attack)), protected)
    assert torch.equal(attack(inputs_for(attack, ("b.jpg",)))[0], protected[1])
    for other in ({"seed": 1}, {"identity": "bob"}):
        assert not torch.equal(attack(inputs_for(attack, **other)), protected)
    grey = torch.full((2, 3, 64, 64), 0.5)
    signs = attack(inputs_for(attack, photos=grey)) - grey
    assert -0.1 < (signs[0] * signs[1]).sign().mean() < 0.1


def test_controls_need_no_model(inputs_for):
    def asked():
        raise AssertionError("class images were asked for")

    photos = inputs_for(None).photos
    for attack in (Noise(eps=8), NoAttack()):
        assert not attack.needs_surrogate
        attack(inputs_for(attack, surrogates=(), load_class_images=asked))
    assert torch.equal(NoAttack()(inputs_for(None)), photos)
    assert PGD.needs_surrogate


def test_a_surrogate_that_stands_still_needs_no_class_images(configured, inputs_for):
    def asked():
        raise AssertionError("class images were asked for")

    attack = configured("attack", "attack=advdm", "attack.steps=2")
    assert not attack.needs_class_images
    protected = attack(inputs_for(attack, load_class_images=asked))
    assert (protected - inputs_for(attack).photos).abs().max() > 0
    assert configured("attack", "attack=aspl").needs_class_images


@pytest.fixture
def protected_elsewhere(tmp_path, inputs_for):
    """A folder of the photos of ann, 6 grey levels off, in another order of names and suffixes."""
    photos = inputs_for(None).photos
    elsewhere = quantize_within(photos + 6 / 255, photos, 6)
    (tmp_path / "ann").mkdir()
    for name, image in zip(("a", "b"), elsewhere, strict=True):
        write_png(tmp_path / "ann" / f"{name}.png", image)
    return tmp_path, elsewhere


def test_precomputed_photos_are_read_by_their_stems(protected_elsewhere, inputs_for):
    root, elsewhere = protected_elsewhere
    attack = Precomputed(root=str(root), eps=6)
    assert not attack.needs_surrogate
    assert torch.equal(attack(inputs_for(attack)), elsewhere)
    turned = attack(inputs_for(attack, ("b.jpg", "a.png")))
    assert torch.equal(turned, elsewhere[[1, 0]])
    one_folder = Precomputed(root=str(root / "ann"), eps=6)
    assert torch.equal(one_folder(inputs_for(attack)), elsewhere)


def test_precomputed_photos_over_their_budget_are_refused(protected_elsewhere, inputs_for):
    root, _ = protected_elsewhere
    attack = Precomputed(root=str(root), eps=5)
    with pytest.raises(ValueError, match=r"a.png differs.*by 6 grey levels.*eps=5.*raise"):
        attack(inputs_for(attack))


def test_precomputed_photos_must_be_there_once(protected_elsewhere, inputs_for):
    root, elsewhere = protected_elsewhere
    attack = Precomputed(root=str(root), eps=8)
    (root / "ann" / "b.png").rename(root / "ann" / "bb.png")
    with pytest.raises(ValueError, match=r"one file named b.png.*found 0"):
        attack(inputs_for(attack))
    for suffix in ("png", "webp"):
        write_png(root / "ann" / f"b.{suffix}", elsewhere[1])
    with pytest.raises(ValueError, match="found 2"):
        attack(inputs_for(attack))
    with pytest.raises(ValueError, match=r"attack.root=.*no such folder"):
        Precomputed(root=str(root / "elsewhere"), eps=8)
