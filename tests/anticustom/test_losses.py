from dataclasses import replace

import pytest
import torch
from diffusers import DDPMScheduler

from anticustom.draws import draw_batches
from anticustom.losses import (
    Denoising,
    FeatureInterference,
    TargetShift,
    decoder_layers,
    recorded_features,
    target_image,
)
from anticustom.timestep_policies import image_gradient_and_loss

PROMPT = "a photo of sks person"
RELEASED = {"reference": "phase_start", "gradient": False}
LOSSES = {
    "denoising": Denoising(),
    "feature": FeatureInterference(),
    "released": FeatureInterference(**RELEASED),
}


@pytest.fixture
def draw(model, draws):
    return draw_batches(draws, "0 perturb", ("a", "b", "c"), 1, [model.timesteps] * 3)[0]


def bound(loss, model, clean, start=None):
    with torch.no_grad():
        posterior = model.posterior(clean)
    start = clean if start is None else start
    return loss.bind(model, prompt=PROMPT, clean=lambda: posterior, start=lambda: start)


def gradient_of(term, images):
    return torch.autograd.grad(term.sum(), images, retain_graph=True)[0]


@pytest.mark.parametrize("loss", [Denoising(), FeatureInterference(up_blocks=(2, 3))])
def test_every_term_has_a_gradient_for_every_image(model, pictures, draw, loss):
    images = pictures(3, 0).requires_grad_()
    terms = bound(loss, model, pictures(3, 1))(images, draw)
    assert list(terms) == (
        ["denoising"] if isinstance(loss, Denoising) else ["denoising", "feature"]
    )
    for term in terms.values():
        assert term.shape == (3,)
        assert (term > 0).all()
        assert (gradient_of(term, images).abs().flatten(1).sum(1) > 0).all()


def test_the_released_feature_term_has_no_gradient(model, pictures, draw):
    clean, start = pictures(3, 1), pictures(3, 2)
    images = pictures(3, 0).requires_grad_()
    terms = bound(LOSSES["released"], model, clean, start)(images, draw)
    assert not terms["feature"].requires_grad
    assert (terms["feature"] > 0).all()
    own, _ = image_gradient_and_loss(bound(Denoising(), model, clean), images, draw)
    total, _ = image_gradient_and_loss(bound(LOSSES["released"], model, clean, start), images, draw)
    torch.testing.assert_close(total, own)


def test_what_the_features_are_compared_with(model, pictures, draw):
    clean, start = pictures(3, 1), pictures(3, 2)
    draw = replace(draw, clean_posterior=draw.posterior)
    original = bound(FeatureInterference(), model, clean, start)
    phase_start = bound(FeatureInterference(reference="phase_start"), model, clean, start)
    with torch.no_grad():
        assert original(clean, draw)["feature"].max() == 0
        assert original(start, draw)["feature"].min() > 0
        assert phase_start(start, draw)["feature"].max() == 0
        assert phase_start(clean, draw)["feature"].min() > 0


def test_the_feature_term_is_the_mean_over_layers_of_per_image_means(model, pictures, draw):
    clean, images = pictures(3, 1), pictures(3, 0)
    with torch.no_grad():
        terms = bound(FeatureInterference(weight=2.5), model, clean)(images, draw)
        features = []
        for picture, normal in ((images, draw.posterior), (clean, draw.clean_posterior)):
            latents = model.latents(model.posterior(picture), normal)
            embeddings = model.text_embeddings([PROMPT] * 3)
            with recorded_features(model, [3]) as maps:
                model.predict(
                    model.noisy(latents, draw.noise, draw.timesteps), draw.timesteps, embeddings
                )
            features.append(maps)
        assert len(features[0]) == len(model.unet.up_blocks[3].resnets)
        distances = [(a - b).square().mean((1, 2, 3)) for a, b in zip(*features, strict=True)]
    torch.testing.assert_close(terms["feature"], 2.5 * sum(distances) / len(distances))


@pytest.mark.parametrize("name", LOSSES)
def test_batched_gradients_are_those_of_single_images(exact_model, pictures, draw, name):
    model, clean, images = exact_model, pictures(3, 1).double(), pictures(3, 0).double()
    together, losses = image_gradient_and_loss(bound(LOSSES[name], model, clean), images, draw)
    for k in range(3):
        one = slice(k, k + 1)
        objective = bound(LOSSES[name], model, clean[one])
        gradient, loss = image_gradient_and_loss(objective, images[one], draw[one])
        torch.testing.assert_close(loss[0], losses[k])
        error = torch.linalg.vector_norm(gradient[0] - together[k])
        assert error < 1e-9 * torch.linalg.vector_norm(together[k])


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_denoising_is_the_models_training_loss(model, pictures, draw, prediction_type):
    model.scheduler = DDPMScheduler.from_config(
        model.scheduler.config, prediction_type=prediction_type
    )
    images = pictures(3, 0)
    kept = model.scheduler.alphas_cumprod[draw.timesteps].view(-1, 1, 1, 1)
    with torch.no_grad():
        loss = bound(Denoising(), model, images)(images, draw)["denoising"]
        moments = model.vae.encode(2 * images - 1).latent_dist
        latents = model.vae.config.scaling_factor * (moments.mean + moments.std * draw.posterior)
        noisy = kept.sqrt() * latents + (1 - kept).sqrt() * draw.noise
        embeddings = model.text_embeddings([PROMPT] * 3)
        prediction = model.unet(noisy, draw.timesteps, embeddings).sample
        velocity = kept.sqrt() * draw.noise - (1 - kept).sqrt() * latents
    target = draw.noise if prediction_type == "epsilon" else velocity
    torch.testing.assert_close(loss, (target - prediction).square().mean((1, 2, 3)))


def test_features_are_of_levels_or_of_single_blocks(model, pictures, draw):
    def features(*up_blocks):
        with torch.no_grad(), recorded_features(model, up_blocks) as maps:
            bound(Denoising(), model, pictures(3, 0))(pictures(3, 0), draw)
        return maps

    every = features(0, 1, 2, 3)
    layers = list(decoder_layers(model))
    assert len(every) == len(layers)
    for chosen, expected in {
        (3,): [name for name in layers if name.startswith("3.")],
        ("3.0",): ["3.0"],
        ("3.0", "1"): [name for name in layers if name.startswith("1.")] + ["3.0"],
    }.items():
        found = features(*chosen)
        assert len(found) == len(expected)
        for one, name in zip(found, expected, strict=True):
            assert torch.equal(one, every[layers.index(name)])
    with pytest.raises(ValueError, match=r"the decoder has no 3\.7, but 0\.0, 0\.1"):
        features(3, "3.7")
    for wrong in ([], ["3."], ["last"], [-1], [3.0]):
        with pytest.raises(ValueError, match=r"^loss\.up_blocks=.*such as \"3\.0\""):
            FeatureInterference(up_blocks=wrong)


def test_features_are_recorded_only_inside(model):
    def hooks():
        return [len(r.conv2._forward_hooks) for b in model.unet.up_blocks for r in b.resnets]

    def interrupted():
        with recorded_features(model, [2, 3]):
            assert sum(hooks()) == sum(len(model.unet.up_blocks[k].resnets) for k in (2, 3))
            raise KeyError

    with pytest.raises(KeyError):
        interrupted()
    assert sum(hooks()) == 0


@pytest.mark.parametrize(
    ("key", "value"), [("reference", "clean"), ("weight", -1.0), ("weight", float("nan"))]
)
def test_bad_settings_are_refused(key, value):
    with pytest.raises(ValueError, match=f"^loss.{key}=.*expected") as error:
        FeatureInterference(**{key: value})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_an_ancestral_step_is_that_of_diffusers(model, prediction_type):
    model.scheduler = DDPMScheduler.from_config(
        model.scheduler.config, prediction_type=prediction_type
    )
    timesteps = torch.tensor([0, 1, 500, 999])
    noisy, prediction = torch.randn(2, 4, *model.latent_shape)
    own = [torch.Generator().manual_seed(k) for k in range(4)]
    ancestral = torch.stack([torch.randn(model.latent_shape, generator=g) for g in own])
    led = model.previous(noisy, prediction, timesteps, ancestral)
    for k, timestep in enumerate(timesteps):
        # its variance is floored at 1e-20, ours is 0 at timestep 0
        step = model.scheduler.step(
            prediction[k], timestep, noisy[k], generator=torch.Generator().manual_seed(k)
        )
        torch.testing.assert_close(led[k], step.prev_sample, rtol=1e-3, atol=1e-4)


def test_the_targeted_loss_falls_towards_its_target(model, pictures, draw):
    images = pictures(3, 0)
    objective = bound(TargetShift(), model, images)
    terms = objective(images, draw)
    assert list(terms) == ["denoising", "target"]
    assert (terms["denoising"] == 0).all()
    target = target_image(None, 64)[None].expand(3, -1, -1, -1)
    exact = replace(draw, posterior=torch.zeros_like(draw.posterior))
    late = replace(exact, timesteps=torch.full((3,), 100))
    assert (objective(target, late)["target"] > objective(images, late)["target"]).all()


def test_what_the_released_targeted_loss_adds(model, pictures, draw):
    images = pictures(3, 0)
    plain, added, wrapped = (
        bound(TargetShift(**settings), model, images)
        for settings in ({}, {"denoising_weight": 1.0}, {"wraps": True})
    )
    first = replace(draw, timesteps=torch.zeros(3, dtype=torch.int64))
    own = bound(Denoising(), model, images)(images, draw)["denoising"]
    torch.testing.assert_close(added(images, draw)["denoising"], own)
    torch.testing.assert_close(wrapped(images, draw)["target"], plain(images, draw)["target"])
    assert (wrapped(images, first)["target"] != plain(images, first)["target"]).all()


@pytest.mark.parametrize("wraps", [False, True])
def test_the_target_of_the_first_timestep(model, pictures, draw, wraps):
    """What one step leads to is the clean target, or as released the target at its noisiest."""
    images = pictures(3, 0)
    first = replace(draw, timesteps=torch.zeros(3, dtype=torch.int64))
    target = target_latents(model, images).expand(3, -1, -1, -1)
    last = torch.full((3,), len(model.timesteps) - 1)
    goal = model.noisy(target, first.noise, last) if wraps else target
    latents = model.latents(model.posterior(images), first.posterior)
    noisy = model.noisy(latents, first.noise, first.timesteps)
    embeddings = model.text_embeddings([PROMPT])
    prediction = model.predict(noisy, first.timesteps, embeddings)
    led = model.previous(noisy, prediction, first.timesteps, torch.zeros_like(noisy))
    found = bound(TargetShift(wraps=wraps), model, images)(images, first)["target"]
    torch.testing.assert_close(found, -(led - goal).square().mean((1, 2, 3)))


def test_a_target_in_bfloat16_is_the_rounded_one(model, pictures, draw):
    images = pictures(3, 0)
    whole, rounded = (
        bound(TargetShift(bfloat16_target=one), model, images)(images, draw)["target"]
        for one in (False, True)
    )
    assert not torch.equal(rounded, whole)
    torch.testing.assert_close(rounded, whole, rtol=1e-2, atol=1e-3)


def target_latents(model, images):
    posterior = model.posterior(target_image(None, images.shape[-1])[None])
    return model.latents(posterior, torch.zeros(()))


def test_a_target_that_is_no_file_is_refused():
    with pytest.raises(ValueError, match=r"loss\.target=nowhere\.png: no such file"):
        TargetShift(target="nowhere.png")
