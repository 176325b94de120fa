import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from anticustom.countermeasures import (
    JPEG,
    TRANSFORMS,
    Blur,
    Crop,
    GaussianNoise,
    Purify,
    Resize,
    Unchanged,
    transformed,
    transforms_of,
    with_purifier,
)
from anticustom.draws import keyed_generator
from anticustom.images import from_8bit, to_8bit

SMOOTH = [Unchanged(), Blur(1.4), Resize(2), Resize(2.5), GaussianNoise(8), Crop(0.9)]
KEY = (0, "ann", "countermeasure")
CHOICES = sorted((Path(__file__).parents[2] / "conf" / "countermeasure").glob("[!_]*.yaml"))


@pytest.fixture
def photo():
    """A grey photo with soft shapes, away from black and white, on the 8-bit grid."""
    y, x = torch.meshgrid(*[torch.linspace(0, 6, 64)] * 2, indexing="ij")
    photo = torch.stack([torch.sin(x), torch.cos(y), torch.sin(x + y)])
    return from_8bit(to_8bit(0.5 + 0.2 * photo))


def through(countermeasure, photo, name="a.png"):
    return transformed([countermeasure], photo[None], [name], *KEY)[0]


def roughness(photo):
    return photo.diff(dim=-1).square().mean().item()


@pytest.mark.parametrize("one", [*SMOOTH, JPEG(50)], ids=str)
def test_size_and_range_are_kept_and_results_repeat(photo, one):
    for each in (photo, torch.ones(3, 33, 47), torch.zeros(3, 64, 64)):
        result = through(one, each)
        assert result.shape == each.shape
        assert result.dtype == torch.float32
        assert 0 <= result.min() <= result.max() <= 1
        assert torch.equal(result, through(one, each))


@pytest.mark.parametrize("one", [*SMOOTH[1:], JPEG(50)], ids=str)
def test_every_one_but_unchanged_changes_a_noisy_photo_a_little(photo, one):
    noisy = GaussianNoise(16)(photo, keyed_generator("noise"))
    assert 1 / 255 < (through(one, noisy) - noisy).abs().mean() < 0.1


@pytest.mark.parametrize("one", [Blur(), Resize(), JPEG(50)], ids=str)
def test_what_smooths_takes_noise_away(photo, one):
    noisy = GaussianNoise(16)(photo, keyed_generator("noise"))
    assert roughness(through(one, noisy)) < 0.8 * roughness(noisy)


@pytest.mark.parametrize("quality", [90, 75, 50])
def test_jpeg_is_what_pillow_writes_and_reads(photo, quality):
    file = io.BytesIO()
    levels = to_8bit(photo).permute(1, 2, 0).numpy()
    Image.fromarray(levels).save(file, "JPEG", quality=quality)
    decoded = np.asarray(Image.open(file))
    assert np.array_equal(to_8bit(through(JPEG(quality), photo)).permute(1, 2, 0), decoded)


def test_noise_has_its_standard_deviation_in_grey_levels(photo):
    grey = torch.full((3, 64, 64), 0.5)
    assert (255 * (through(GaussianNoise(8), grey) - grey)).std().item() == pytest.approx(
        8, rel=0.05
    )


def test_blur_is_in_pixels():
    point = torch.zeros(3, 65, 65)
    point[:, 32, 32] = 1
    row = through(Blur(2), point)[0].sum(0)
    spread = (row * (torch.arange(65) - 32) ** 2).sum().sqrt()
    assert spread.item() == pytest.approx(2, rel=0.02)


@pytest.mark.parametrize(("factor", "kept"), [(1.25, 1.0), (3, 0.0)])
def test_resizing_takes_waves_below_two_pixels_of_the_smaller_photo(factor, kept):
    wave = 0.4 * torch.cos(torch.arange(120) * 2 * torch.pi / 4)  # a period of 4 px
    small = through(Resize(factor), (0.5 + wave).expand(3, 120, 120))[0, 60, 20:100] - 0.5
    amplitude = small.std() / wave.std()
    assert amplitude.item() == pytest.approx(kept, abs=0.25)


@pytest.mark.parametrize("share", [0.5, 0.8])
def test_crop_enlarges_the_middle(share):
    photo = torch.zeros(3, 80, 80)
    photo[:, 20:60, 20:60] = 1
    found = through(Crop(share), photo)[0]
    assert found.mean().item() == pytest.approx((0.5 / share) ** 2, abs=0.01)
    assert torch.allclose(found, found.flip(0).flip(1), atol=1e-5)


def test_randomness_depends_on_the_photos_name_not_on_the_others(photo):
    photos, names = torch.stack([photo, photo.flip(-1), photo]), ["a", "b", "c"]
    every = [GaussianNoise(8), Blur(), JPEG(75), Crop()]
    together = transformed(every, photos, names, *KEY)
    alone = transformed(every, photos[1:2], ["b"], *KEY)
    turned = transformed(every, photos.flip(0), names[::-1], *KEY)
    assert torch.equal(together[1:2], alone)
    assert torch.equal(together, turned.flip(0))
    noisy = transformed(every[:1], photos, names, *KEY)
    assert not torch.equal(noisy[0], noisy[2])
    for other in ((1, *KEY[1:]), (0, "bob", KEY[2]), (*KEY[:2], "other")):
        assert not torch.equal(noisy, transformed(every[:1], photos, names, *other))


def test_every_transform_is_drawn(photo):
    every = [Unchanged(), Blur(), JPEG(50)]
    results = [one(photo, torch.Generator()) for one in every]
    drawn = [transformed(every, photo[None], ["a"], 0, "ann", str(k))[0] for k in range(30)]
    counts = [sum(torch.equal(one, result) for one in drawn) for result in results]
    assert sum(counts) == 30
    assert min(counts) >= 3


@pytest.mark.parametrize("one", SMOOTH, ids=str)
def test_gradients_agree_with_finite_differences(photo, one):
    photo = photo.double()
    generator = torch.Generator().manual_seed(0)
    weights, direction = torch.randn((2, *photo.shape), generator=generator, dtype=torch.float64)
    leaf = photo.clone().requires_grad_()

    def value(at):
        return (weights * one(at, keyed_generator("same"))).sum()

    (gradient,) = torch.autograd.grad(value(leaf), leaf)
    step = 1e-5 * direction
    slope = (value(photo + step) - value(photo - step)).item() / 2
    assert (gradient * step).sum().item() == pytest.approx(slope, rel=1e-4)


def test_the_gradient_passes_straight_through_jpeg(photo):
    leaf = photo.clone().requires_grad_()
    weights = torch.rand(photo.shape)
    (gradient,) = torch.autograd.grad((weights * through(JPEG(50), leaf)).sum(), leaf)
    assert torch.equal(gradient, weights)


def test_purification_repeats_and_starts_below_its_timestep(model, photo, monkeypatch):
    asked = []
    predict = model.predict
    monkeypatch.setattr(
        model, "predict", lambda *a: asked.append(int(a[1].max())) or predict(*a), raising=False
    )
    purify = Purify(timestep=200, steps=50, model=model)
    once = through(purify, photo)
    assert asked == list(range(199, 0, -20))
    assert once.shape == photo.shape
    assert 0 <= once.min() <= once.max() <= 1
    assert torch.equal(once, through(purify, photo))
    assert not torch.equal(once, through(purify, photo, "b.png"))


def test_purification_is_that_of_diffusers_pipeline(model, photo):
    """Image to image: the same sampler and noise, but its own loop."""
    from diffusers import DDIMScheduler, StableDiffusionImg2ImgPipeline

    sampler = DDIMScheduler.from_config(model.scheduler.config, timestep_spacing="trailing")
    pipeline = StableDiffusionImg2ImgPipeline(
        **{**model.pipeline(sampler).components, "image_encoder": None},
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.randn((1, *model.latent_shape), generator=keyed_generator("x"))
    latents = model.latents(model.posterior(photo[None]), torch.zeros(1))
    with torch.no_grad():
        noisy = model.noisy(latents, noise, torch.tensor([199]))
        pipeline.prepare_latents = lambda *a, **k: noisy
        theirs = pipeline(
            "",
            image=photo[None],
            strength=0.2,
            num_inference_steps=50,
            guidance_scale=1,
            output_type="pt",
        ).images[0]
    # the pipeline does not clip latents either, whatever sampler the model has been saved with
    model.scheduler.register_to_config(clip_sample=True)
    ours = Purify(timestep=200, steps=50, model=model)(photo, keyed_generator("x"))
    assert torch.allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (JPEG, {"quality": 0}),
        (JPEG, {"quality": 75.5}),
        (JPEG, {"quality": True}),
        (Blur, {"sigma": 0}),
        (Blur, {"sigma": "wide"}),
        (Resize, {"factor": 0.5}),
        (GaussianNoise, {"sigma": -1}),
        (Crop, {"share": 90}),
        (Purify, {"timestep": 0}),
        (Purify, {"steps": 1.5}),
        (Purify, {"timestep": 10}),
    ],
)
def test_bad_settings_are_refused(kind, settings):
    (key,) = settings
    with pytest.raises(ValueError, match=rf"{kind.__name__}\.{key}={settings[key]!r}: ") as error:
        kind(**settings)
    assert "\n" not in str(error.value)


def test_transforms_are_names_or_settings():
    assert transforms_of(["identity", "blur", Blur(3)]) == (Unchanged(), Blur(), Blur(3))
    assert transforms_of(list(TRANSFORMS)) == tuple(TRANSFORMS.values())
    for wrong in ("blur", ["blurr"], [{"quality": 3}], [3], [["blur"]]):
        with pytest.raises(ValueError, match=r"attack\.transforms=.*expected a list of none, jpeg"):
            transforms_of(wrong)


@pytest.mark.parametrize("name", [path.stem for path in CHOICES])
def test_a_transform_is_the_counter_measure_of_its_name(configured, name):
    (transform,) = transforms_of([name])
    (theirs,) = with_purifier([configured("countermeasure", f"countermeasure={name}")], None)
    assert transform == theirs


def test_the_gradient_of_purification_is_that_of_its_values(exact_model, photo):
    """Along a random direction, by differences."""
    (purify,) = with_purifier([Purify(timestep=60, steps=50)], exact_model)
    assert len(purify.timesteps(exact_model)) == 3
    photo = photo.double().requires_grad_()
    weights, direction = (torch.randn(photo.shape, generator=keyed_generator(k)) for k in "wd")

    def value(photo):
        return (weights * purify(photo, keyed_generator("noise"))).sum()

    (gradient,) = torch.autograd.grad(value(photo), photo)
    with torch.no_grad():
        step = 1e-5 * direction
        slope = (value(photo + step) - value(photo - step)) / 2
    assert (gradient * step).sum().item() == pytest.approx(
        slope.item(), rel=1e-2
    )  # decoded in float32
    assert gradient.abs().max() > 0
