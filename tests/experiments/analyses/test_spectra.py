"""Spectra of fields whose frequencies are known."""

import math

import pytest
import torch

from experiments.analyses.spectra import (
    high_frequency_share,
    mean_frequency,
    power,
    radial_power,
    white_noise_share,
)


def wave(cycles_x: int, cycles_y: int, size: int = 32) -> torch.Tensor:
    y, x = torch.meshgrid(*[torch.arange(size) / size] * 2, indexing="ij")
    return torch.sin(2 * math.pi * (cycles_x * x + cycles_y * y))


@pytest.mark.parametrize(("x", "y", "frequency"), [(5, 0, 5), (0, 12, 12), (6, 8, 10)])
def test_a_wave_has_its_power_at_its_frequency(x, y, frequency):
    radial = radial_power(wave(x, y))
    assert radial.argmax() == frequency
    others = radial[torch.arange(17) != frequency]
    torch.testing.assert_close(others, torch.zeros(16), atol=1e-6, rtol=0)
    assert mean_frequency(wave(x, y)[None, None]).item() == pytest.approx(frequency, rel=1e-4)


def test_energy_is_kept():
    fields = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(power(fields).sum((-2, -1)), fields.square().sum((-2, -1)))


def test_white_noise_has_the_same_power_at_every_frequency():
    noise = torch.randn(10_000, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(radial_power(noise).mean(0), torch.ones(9), atol=0.06, rtol=0)


@pytest.mark.parametrize("size", [4, 8, 16])
def test_white_noise_has_the_expected_high_frequency_share(size):
    noise = torch.randn(50, 40, size, size, generator=torch.Generator().manual_seed(0))
    assert high_frequency_share(noise).mean() == pytest.approx(white_noise_share(size), abs=0.01)


def test_shares_of_waves_and_sums():
    """Half of Nyquist's frequency of 32 samples is 8 cycles; the mean does not count."""
    low, high = 3 * wave(4, 4) + 100, wave(12, 0) - 7
    fields = torch.stack([low, high, low + high])[:, None]
    expected = torch.tensor([0, 1, 0.1])
    torch.testing.assert_close(high_frequency_share(fields), expected, atol=1e-4, rtol=0)
    together = torch.stack([low, high])[None]
    torch.testing.assert_close(high_frequency_share(together), expected[2:], atol=1e-4, rtol=0)


def test_of_two_samples_a_side_all_but_the_mean_is_high():
    assert white_noise_share(2) == 1
