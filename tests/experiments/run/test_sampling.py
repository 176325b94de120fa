"""Sampling: what an image's noise depends on, and what the sampler is told."""

import pytest
import torch

from experiments.run.sampling import sample
from experiments.store.checkpoints import TimedCheckpoint

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
    return sample(Network(), [prompt], SETTINGS | changed, seed, 5, lambda *_: None)[0]


def test_each_image_has_noise_of_its_own_whatever_the_batches_are():
    images = drawn()
    assert len(torch.unique(images.flatten(1), dim=0)) == 5
    assert torch.equal(images, drawn(batch_size=5))
    for other in (drawn(seed=1), drawn("a photo of person")):
        assert not any(torch.equal(*pair) for pair in zip(images, other, strict=True))


def test_the_sampler_is_told_the_settings_and_progress_counts_all_steps():
    network, counted = Network(), []
    sample(network, ["a photo"], SETTINGS, 0, 5, lambda what, done, total: counted.append(done))
    settings = {key: value for key, value in SETTINGS.items() if key != "batch_size"}
    assert network.told == [("a photo", count, settings) for count in (2, 2, 1)]
    assert counted == list(range(1, 10))


class Killed(Exception):
    pass


@pytest.mark.parametrize("batches", range(6))
def test_what_was_drawn_before_a_kill_is_not_drawn_again(tmp_path, batches):
    prompts, told = ["a photo", "a painting"], []

    class Mortal(Network):
        def sample(self, prompt, noise, **settings):
            if len(told) == batches and not (tmp_path / "killed").exists():
                (tmp_path / "killed").touch()
                raise Killed
            told.append((prompt, len(noise)))
            return super().sample(prompt, noise, **settings)

    def draw(network, checkpoint=None, counted=None):
        progress = (counted if counted is not None else []).append
        return sample(
            network, prompts, SETTINGS, 0, 5, lambda what, *done: progress(done), checkpoint
        )

    with pytest.raises(Killed):
        draw(Mortal(), TimedCheckpoint(tmp_path, minutes=0))
    counted = []
    images = draw(Mortal(), TimedCheckpoint(tmp_path, minutes=0), counted)
    assert told == [(prompt, count) for prompt in prompts for count in (2, 2, 1)]
    assert counted[-1] == (9, 9)
    assert len(counted) == 3 * (6 - batches)
    assert torch.equal(torch.stack(images), torch.stack(draw(Network())))
