"""Sampling from a model of random weights."""

import pytest
import torch

from anticustom.sampling import KARRAS_SAMPLERS, SAMPLERS


def sampled(model, scheduler: str, **options) -> torch.Tensor:
    noise = torch.randn(1, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    return model.sample(
        "a photo", noise, steps=4, guidance_scale=2.0, scheduler=scheduler, **options
    )


@pytest.mark.parametrize("scheduler", KARRAS_SAMPLERS)
def test_karras_sigmas_space_the_steps_otherwise(model, scheduler):
    spaced = sampled(model, scheduler, karras_sigmas=True)
    assert spaced.isfinite().all()
    assert not torch.equal(spaced, sampled(model, scheduler))


@pytest.mark.parametrize("scheduler", SAMPLERS)
def test_an_image_depends_on_its_first_noise_alone(model, scheduler):
    torch.manual_seed(1)
    first = sampled(model, scheduler)
    torch.manual_seed(2)
    assert torch.equal(sampled(model, scheduler), first)


def test_noise_is_added_in_bfloat16_where_the_model_is(new_model):
    """As in the released code, whose scheduler then adds none at the first timesteps."""
    whole, rounded = new_model(), new_model("bfloat16")
    latents, noise = torch.zeros(3, *whole.latent_shape), torch.ones(3, *whole.latent_shape)
    timesteps = torch.tensor([0, 1, 500])
    exact, rough = (model.noisy(latents, noise, timesteps) for model in (whole, rounded))
    assert exact.dtype == torch.float32
    assert (exact[:2] > 0.01).all()
    assert (rough[:2] == 0).all()
    torch.testing.assert_close(rough[2].float(), exact[2], rtol=1e-2, atol=0)
