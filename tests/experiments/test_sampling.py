"""Sampling: what an image's noise depends on, and what the sampler is told."""

import torch

from experiments.sampling import sample

SETTINGS = {
    "batch_size": 2,
    "steps": 3,
    "guidance_scale": 7.5,
    "scheduler": "DDIMScheduler",
    "karras_sigmas": True,
}


class Network:
    """Draws its noise, and keeps what it was told."""

    latent_shape = (3, 4, 4)

    def __init__(self):
        self.told = []

    def sample(self, prompt, noise, *, callback, **settings):
        self.told.append((prompt, len(noise), settings))
        for _ in range(settings["steps"]):
            callback()
        return noise


def drawn(prompt="a photo", seed=0, **changed) -> torch.Tensor:
    return sample(Network(), prompt, SETTINGS | changed, seed, 5, lambda *_: None)


def test_each_image_has_noise_of_its_own_whatever_the_batches_are():
    images = drawn()
    assert len(torch.unique(images.flatten(1), dim=0)) == 5
    assert torch.equal(images, drawn(batch_size=5))
    for other in (drawn(seed=1), drawn("a photo of person")):
        assert not any(torch.equal(*pair) for pair in zip(images, other, strict=True))


def test_the_sampler_is_told_the_settings_and_progress_counts_all_steps():
    network, counted = Network(), []
    sample(network, "a photo", SETTINGS, 0, 5, lambda what, done, total: counted.append(done))
    settings = {key: value for key, value in SETTINGS.items() if key != "batch_size"}
    assert network.told == [("a photo", count, settings) for count in (2, 2, 1)]
    assert counted == list(range(1, 10))
