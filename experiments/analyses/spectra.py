"""Spectra of square fields: images, latents, features.

Frequencies are in cycles per side. The highest along an axis, Nyquist's, is half the number of
samples. The transform is orthonormal, so that white noise of variance 1 has power 1 at every
frequency. No window is applied: a step across opposite borders leaks into high frequencies.
"""

import torch
from torch import Tensor


def power(fields: Tensor) -> Tensor:
    """Return the squared magnitudes of the Fourier transform of fields (..., n, n)."""
    return torch.fft.fft2(fields.float(), norm="ortho").abs().square()


def radii(size: int) -> Tensor:
    """Return the frequency of each coefficient of `power`, (size, size)."""
    axis = torch.fft.fftfreq(size, d=1 / size)
    return torch.hypot(axis[:, None], axis[None, :])


def radial_power(fields: Tensor) -> Tensor:
    """Return the mean power at 0, 1, ..., n/2 cycles per side: (..., n/2 + 1) of (..., n, n).

    A frequency stands for the ring of those that round to it. The corners beyond Nyquist's
    frequency are left out.
    """
    size, spectrum = fields.shape[-1], power(fields)
    ring = radii(size).round().to(fields.device)
    return torch.stack([spectrum[..., ring == k].mean(-1) for k in range(size // 2 + 1)], -1)


def high_frequency_share(fields: Tensor) -> Tensor:
    """Return the energy share of fields (n, c, s, s) above half of Nyquist's frequency, (n,).

    Energy is summed over channels, without the channels' means. With 2 samples a side all of it
    lies above.
    """
    return _share(power(fields))


def white_noise_share(size: int) -> float:
    """Return the expected `high_frequency_share` of white noise with `size` samples a side."""
    return float(_share(torch.ones(1, 1, size, size)))


def mean_frequency(fields: Tensor) -> Tensor:
    """Return the mean frequency of fields (n, c, s, s), weighted by energy without means, (n,)."""
    spectrum = _without_means(power(fields))
    weighted = (spectrum * radii(fields.shape[-1]).to(spectrum)).flatten(1).sum(1)
    return weighted / spectrum.flatten(1).sum(1)


def _share(spectrum: Tensor) -> Tensor:
    spectrum, size = _without_means(spectrum), spectrum.shape[-1]
    above = spectrum[..., radii(size) > size / 4].flatten(1).sum(1)
    return above / spectrum.flatten(1).sum(1)


def _without_means(spectrum: Tensor) -> Tensor:
    spectrum = spectrum.clone()
    spectrum[..., 0, 0] = 0
    return spectrum
