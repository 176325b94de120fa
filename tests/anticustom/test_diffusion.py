"""Sampling from a model of random weights."""

import pytest
import torch

from experiments.settings import KARRAS_SAMPLERS, SAMPLERS


def sampled(model, scheduler: str, **options) -> torch.Tensor:
    noise = torch.randn(1, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    return model.sample(
        "a photo", noise, steps=5, guidance_scale=2.0, scheduler=scheduler, **options
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
