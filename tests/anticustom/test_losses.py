from dataclasses import replace

import pytest
import torch
from diffusers import DDPMScheduler
from helpers import refused

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
LOSSES = {
    "denoising": Denoising(),
    "feature": FeatureInterference(),
    "released": FeatureInterference(reference="phase_start", gradient=False),
}
PREDICTION = pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])


@pytest.fixture
def images(pictures):
    return pictures(3, 0)


@pytest.fixture
def draw(model, draws):
    return draw_batches(draws, "0 perturb", ("a", "b", "c"), 1, [model.timesteps] * 3)[0]


@pytest.fixture
def first(draw):
    """Return the draw at the first timestep."""
    return replace(draw, timesteps=torch.zeros(3, dtype=torch.int64))


def bound(loss, model, clean, start=None):
    with torch.no_grad():
        posterior = model.posterior(clean)
    start = clean if start is None else start
    return loss.bind(model, prompt=PROMPT, clean=lambda: posterior, start=lambda: start)


def predict_as(model, prediction_type: str) -> None:
    config = model.scheduler.config
    model.scheduler = DDPMScheduler.from_config(config, prediction_type=prediction_type)


def hand_predicted(model, picture, normal, draw):
    """Return noisy latents of a picture and the model's prediction of them."""
    latents = model.latents(model.posterior(picture), normal)
    noisy = model.noisy(latents, draw.noise, draw.timesteps)
    return noisy, model.predict(noisy, draw.timesteps, model.text_embeddings([PROMPT]))


@pytest.mark.parametrize("loss", [Denoising(), FeatureInterference(up_blocks=(2, 3))])
def test_every_term_has_a_gradient_for_every_image(model, pictures, images, draw, loss):
    images.requires_grad_()
    terms = bound(loss, model, pictures(3, 1))(images, draw)
    assert list(terms) == ["denoising", "feature"][: 1 + isinstance(loss, FeatureInterference)]
    for term in terms.values():
        assert term.shape == (3,)
        assert (term > 0).all()
        (gradient,) = torch.autograd.grad(term.sum(), images, retain_graph=True)
        assert (gradient.abs().flatten(1).sum(1) > 0).all()


def test_the_released_feature_term_has_no_gradient(model, pictures, images, draw):
    released = bound(LOSSES["released"], model, pictures(3, 1), pictures(3, 2))
    terms = released(images.clone().requires_grad_(), draw)
    assert not terms["feature"].requires_grad
    assert (terms["feature"] > 0).all()
    plain, _ = image_gradient_and_loss(bound(Denoising(), model, images), images, draw)
    total, _ = image_gradient_and_loss(released, images, draw)
    torch.testing.assert_close(total, plain)


def test_the_two_references_of_the_features(model, pictures, draw):
    clean, start = pictures(3, 1), pictures(3, 2)
    draw = replace(draw, clean_posterior=draw.posterior)
    for reference, same, unlike in (("original", clean, start), ("phase_start", start, clean)):
        objective = bound(FeatureInterference(reference=reference), model, clean, start)
        with torch.no_grad():
            assert objective(same, draw)["feature"].max() == 0
            assert objective(unlike, draw)["feature"].min() > 0


def test_the_feature_term_is_the_mean_over_layers_of_per_image_means(model, pictures, images, draw):
    clean, features = pictures(3, 1), []
    with torch.no_grad():
        terms = bound(FeatureInterference(weight=2.5), model, clean)(images, draw)
        for picture, normal in ((images, draw.posterior), (clean, draw.clean_posterior)):
            with recorded_features(model, [3]) as maps:
                hand_predicted(model, picture, normal, draw)
            features.append(maps)
    assert len(features[0]) == len(model.unet.up_blocks[3].resnets)
    distances = [(a - b).square().mean((1, 2, 3)) for a, b in zip(*features, strict=True)]
    torch.testing.assert_close(terms["feature"], 2.5 * sum(distances) / len(distances))


@pytest.mark.parametrize("name", LOSSES)
def test_batched_gradients_are_those_of_single_images(exact_model, pictures, draw, name):
    model, clean, images = exact_model, pictures(3, 1).double(), pictures(3, 0).double()
    together, losses = image_gradient_and_loss(bound(LOSSES[name], model, clean), images, draw)
    for k in range(3):
        row = slice(k, k + 1)
        objective = bound(LOSSES[name], model, clean[row])
        gradient, loss = image_gradient_and_loss(objective, images[row], draw[row])
        torch.testing.assert_close(loss[0], losses[k])
        error = torch.linalg.vector_norm(gradient[0] - together[k])
        assert error < 1e-9 * torch.linalg.vector_norm(together[k])


@PREDICTION
def test_denoising_is_the_models_training_loss(model, images, draw, prediction_type):
    predict_as(model, prediction_type)
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


def test_features_are_of_levels_or_of_single_blocks(model, images, draw):
    def features(*up_blocks):
        with torch.no_grad(), recorded_features(model, up_blocks) as maps:
            bound(Denoising(), model, images)(images, draw)
        return maps

    layers = list(decoder_layers(model))
    all_maps = dict(zip(layers, features(0, 1, 2, 3), strict=True))
    for chosen, expected in {
        (3,): [name for name in layers if name.startswith("3.")],
        ("3.0",): ["3.0"],
        ("3.0", "1"): [name for name in layers if name.startswith("1.")] + ["3.0"],
    }.items():
        for maps, name in zip(features(*chosen), expected, strict=True):
            assert torch.equal(maps, all_maps[name])
    with pytest.raises(ValueError, match=r"the decoder has no 3\.7, but 0\.0, 0\.1"):
        features(3, "3.7")
    for wrong in ([], ["3."], ["last"], [-1], [3.0]):
        with pytest.raises(ValueError, match=r"^loss\.up_blocks=.*such as \"3\.0\""):
            FeatureInterference(up_blocks=wrong)


def test_features_are_recorded_only_inside(model):
    def hooks():
        return sum(len(layer._forward_hooks) for layer in decoder_layers(model).values())

    def interrupted():
        with recorded_features(model, [2, 3]):
            assert hooks() == sum(len(model.unet.up_blocks[k].resnets) for k in (2, 3))
            raise KeyError

    with pytest.raises(KeyError):
        interrupted()
    assert hooks() == 0


@pytest.mark.parametrize(
    ("key", "value"), [("reference", "clean"), ("weight", -1.0), ("weight", float("nan"))]
)
def test_bad_settings_are_refused(key, value):
    with refused(f"^loss.{key}=.*expected"):
        FeatureInterference(**{key: value})


@PREDICTION
def test_an_ancestral_step_is_that_of_diffusers(model, prediction_type):
    predict_as(model, prediction_type)
    timesteps = torch.tensor([0, 1, 500, 999])
    noisy, prediction = torch.randn(2, 4, *model.latent_shape)

    def generator(k):
        return torch.Generator().manual_seed(k)

    ancestral = torch.stack(
        [torch.randn(model.latent_shape, generator=generator(k)) for k in range(4)]
    )
    led = model.previous(noisy, prediction, timesteps, ancestral)
    for k, timestep in enumerate(timesteps):
        # its variance is floored at 1e-20, ours is 0 at timestep 0
        step = model.scheduler.step(prediction[k], timestep, noisy[k], generator=generator(k))
        torch.testing.assert_close(led[k], step.prev_sample, rtol=1e-3, atol=1e-4)


def test_the_targeted_loss_falls_towards_its_target(model, images, draw):
    objective = bound(TargetShift(), model, images)
    terms = objective(images, draw)
    assert list(terms) == ["denoising", "target"]
    assert (terms["denoising"] == 0).all()
    target = target_image(None, 64)[None].expand(3, -1, -1, -1)
    exact = replace(draw, posterior=torch.zeros_like(draw.posterior))
    late = replace(exact, timesteps=torch.full((3,), 100))
    assert (objective(target, late)["target"] > objective(images, late)["target"]).all()


def test_what_the_released_targeted_loss_adds(model, images, draw, first):
    plain, added, wrapped = (
        bound(TargetShift(**settings), model, images)
        for settings in ({}, {"denoising_weight": 1.0}, {"wraps": True})
    )
    denoising = bound(Denoising(), model, images)(images, draw)["denoising"]
    torch.testing.assert_close(added(images, draw)["denoising"], denoising)
    torch.testing.assert_close(wrapped(images, draw)["target"], plain(images, draw)["target"])
    assert (wrapped(images, first)["target"] != plain(images, first)["target"]).all()


@pytest.mark.parametrize("wraps", [False, True])
def test_the_target_of_the_first_timestep(model, images, first, wraps):
    """One step leads to the clean target, or as released to the target at its noisiest."""
    posterior = model.posterior(target_image(None, 64)[None])
    target = model.latents(posterior, torch.zeros(())).expand(3, -1, -1, -1)
    last = torch.full((3,), len(model.timesteps) - 1)
    goal = model.noisy(target, first.noise, last) if wraps else target
    noisy, prediction = hand_predicted(model, images, first.posterior, first)
    led = model.previous(noisy, prediction, first.timesteps, torch.zeros_like(noisy))
    term = bound(TargetShift(wraps=wraps), model, images)(images, first)["target"]
    torch.testing.assert_close(term, -(led - goal).square().mean((1, 2, 3)))


def test_a_target_in_bfloat16_is_the_rounded_one(model, images, draw):
    whole, rounded = (
        bound(TargetShift(bfloat16_target=rounds), model, images)(images, draw)["target"]
        for rounds in (False, True)
    )
    assert not torch.equal(rounded, whole)
    torch.testing.assert_close(rounded, whole, rtol=1e-2, atol=1e-3)


def test_a_target_that_is_no_file_is_refused():
    with pytest.raises(ValueError, match=r"loss\.target=nowhere\.png: no such file"):
        TargetShift(target="nowhere.png")
