import io

import numpy as np
import pytest
import torch
from conf_options import options
from helpers import refused
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


@pytest.fixture
def photo():
    """A grey photo with soft shapes, away from black and white, on the 8-bit grid."""
    y, x = torch.meshgrid(*[torch.linspace(0, 6, 64)] * 2, indexing="ij")
    photo = torch.stack([torch.sin(x), torch.cos(y), torch.sin(x + y)])
    return from_8bit(to_8bit(0.5 + 0.2 * photo))


def through(countermeasure, photo, name="a.png"):
    return transformed([countermeasure], photo[None], [name], *KEY)[0]


def noisy(photo):
    return GaussianNoise(16)(photo, keyed_generator("noise"))


def roughness(photo):
    return photo.diff(dim=-1).square().mean().item()


@pytest.mark.parametrize("countermeasure", [*SMOOTH, JPEG(50)], ids=str)
def test_countermeasures_keep_size_and_range_repeat_and_change_a_noisy_photo_a_little(
    photo, countermeasure
):
    for image in (photo, torch.ones(3, 33, 47), torch.zeros(3, 64, 64)):
        result = through(countermeasure, image)
        assert result.shape == image.shape
        assert result.dtype == torch.float32
        assert 0 <= result.min() <= result.max() <= 1
        assert torch.equal(result, through(countermeasure, image))
    change = (through(countermeasure, noisy(photo)) - noisy(photo)).abs().mean()
    assert change == 0 if countermeasure == Unchanged() else 1 / 255 < change < 0.1


@pytest.mark.parametrize("countermeasure", [Blur(), Resize(), JPEG(50)], ids=str)
def test_smoothing_takes_noise_away(photo, countermeasure):
    assert roughness(through(countermeasure, noisy(photo))) < 0.8 * roughness(noisy(photo))


@pytest.mark.parametrize("quality", [90, 75, 50])
def test_jpeg_is_what_pillow_writes_and_reads(photo, quality):
    file = io.BytesIO()
    levels = to_8bit(photo).permute(1, 2, 0).numpy()
    Image.fromarray(levels).save(file, "JPEG", quality=quality)
    decoded = np.asarray(Image.open(file))
    assert np.array_equal(to_8bit(through(JPEG(quality), photo)).permute(1, 2, 0), decoded)


def test_noise_has_its_standard_deviation_in_grey_levels():
    grey = torch.full((3, 64, 64), 0.5)
    noise = 255 * (through(GaussianNoise(8), grey) - grey)
    assert noise.std().item() == pytest.approx(8, rel=0.05)


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
    crop = through(Crop(share), photo)[0]
    assert crop.mean().item() == pytest.approx((0.5 / share) ** 2, abs=0.01)
    assert torch.allclose(crop, crop.flip(0).flip(1), atol=1e-5)


def test_randomness_depends_on_the_photos_name_not_on_the_others(photo):
    photos, names = torch.stack([photo, photo.flip(-1), photo]), ["a", "b", "c"]
    several = [GaussianNoise(8), Blur(), JPEG(75), Crop()]
    together = transformed(several, photos, names, *KEY)
    alone = transformed(several, photos[1:2], ["b"], *KEY)
    turned = transformed(several, photos.flip(0), names[::-1], *KEY)
    assert torch.equal(together[1:2], alone)
    assert torch.equal(together, turned.flip(0))
    noisy = transformed(several[:1], photos, names, *KEY)
    assert not torch.equal(noisy[0], noisy[2])
    for key in ((1, *KEY[1:]), (0, "bob", KEY[2]), (*KEY[:2], "other")):
        assert not torch.equal(noisy, transformed(several[:1], photos, names, *key))


def test_every_transform_is_drawn(photo):
    transforms = [Unchanged(), Blur(), JPEG(50)]
    results = [transform(photo, torch.Generator()) for transform in transforms]
    drawn = [transformed(transforms, photo[None], ["a"], 0, "ann", str(k))[0] for k in range(30)]
    counts = [sum(torch.equal(image, result) for image in drawn) for result in results]
    assert sum(counts) == 30
    assert min(counts) >= 3


def assert_gradient_is_that_of_the_values(countermeasure, photo, rel):
    """Compare the gradient along a random direction with differences."""
    photo = photo.double().requires_grad_()
    weights, direction = (torch.randn(photo.shape, generator=keyed_generator(k)) for k in "wd")

    def value(image):
        return (weights * countermeasure(image, keyed_generator("noise"))).sum()

    (gradient,) = torch.autograd.grad(value(photo), photo)
    with torch.no_grad():
        step = 1e-5 * direction
        slope = (value(photo + step) - value(photo - step)) / 2
    assert (gradient * step).sum().item() == pytest.approx(slope.item(), rel=rel)
    assert gradient.abs().max() > 0


@pytest.mark.parametrize("countermeasure", SMOOTH, ids=str)
def test_gradients_agree_with_finite_differences(photo, countermeasure):
    assert_gradient_is_that_of_the_values(countermeasure, photo, rel=1e-4)


def test_the_gradient_of_purification_is_that_of_its_values(exact_model, photo):
    (purify,) = with_purifier([Purify(timestep=60, steps=50)], exact_model)
    assert len(purify.timesteps(exact_model)) == 3
    assert_gradient_is_that_of_the_values(purify, photo, rel=1e-2)  # decoded in float32


def test_the_gradient_passes_straight_through_jpeg(photo):
    leaf = photo.clone().requires_grad_()
    weights = torch.rand(photo.shape)
    (gradient,) = torch.autograd.grad((weights * through(JPEG(50), leaf)).sum(), leaf)
    assert torch.equal(gradient, weights)


def test_purification_repeats_and_starts_below_its_timestep(model, photo, monkeypatch):
    timesteps = []
    predict = model.predict

    def noting(*inputs):
        timesteps.append(int(inputs[1].max()))
        return predict(*inputs)

    monkeypatch.setattr(model, "predict", noting, raising=False)
    purify = Purify(timestep=200, steps=50, model=model)
    once = through(purify, photo)
    assert timesteps == list(range(199, 0, -20))
    assert once.shape == photo.shape
    assert 0 <= once.min() <= once.max() <= 1
    assert torch.equal(once, through(purify, photo))
    assert not torch.equal(once, through(purify, photo, "b.png"))


def test_purification_is_that_of_diffusers_pipeline(model, photo):
    """The image-to-image pipeline gets the same sampler and noise, but has a loop of its own."""
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
    # whatever sampler the model is saved with: like the pipeline, purification clips no latents
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
    with refused(rf"{kind.__name__}\.{key}={settings[key]!r}: "):
        kind(**settings)


def test_transforms_are_names_or_settings():
    assert transforms_of(["identity", "blur", Blur(3)]) == (Unchanged(), Blur(), Blur(3))
    assert transforms_of(list(TRANSFORMS)) == tuple(TRANSFORMS.values())
    for wrong in ("blur", ["blurr"], [{"quality": 3}], [3], [["blur"]]):
        with pytest.raises(ValueError, match=r"attack\.transforms=.*expected a list of none, jpeg"):
            transforms_of(wrong)


@pytest.mark.parametrize("name", options("countermeasure"))
def test_a_transform_is_the_counter_measure_of_its_name(configured, name):
    (transform,) = transforms_of([name])
    (theirs,) = with_purifier([configured("countermeasure", f"countermeasure={name}")], None)
    assert transform == theirs
