"""Sampling images from a model: class images and galleries."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from anticustom.draws import keyed_generator
from anticustom.progress import Checkpoint, NoCheckpoint
from experiments.setup.settings import SAMPLER


def sample(
    network: Any,
    prompts: Sequence[str],
    settings: Mapping,
    seed: int,
    count: int,
    progress: Callable,
    checkpoint: Checkpoint | None = None,
) -> list[Tensor]:
    """Return `count` images (n, 3, h, w) in [0, 1] of each prompt.

    Image i depends on (seed, prompt, i), not on the batching. A `checkpoint` keeps finished
    batches, so a killed call does not draw them again. Raises FloatingPointError for an image that
    is not finite.
    """
    checkpoint = checkpoint or NoCheckpoint()
    saved = checkpoint.load()
    images = [saved[0]["images"]] if saved else []
    kept = sum(map(len, images))
    for prompt in prompts:
        noise = torch.stack([_noise(network, seed, prompt, i) for i in range(count)])
        batches = noise.split(settings["batch_size"])
        steps = _Steps(progress, prompt, len(batches) * settings["steps"])
        for batch in batches:
            if kept > 0:  # checkpoints come between batches
                kept -= len(batch)
                steps.done += settings["steps"]
                continue
            images.append(_drawn(network, prompt, batch, settings, steps))
            if checkpoint.due():
                images = [torch.cat(images)]
                checkpoint.save({"images": images[0]}, {})
    return list(torch.cat(images).split(count))


def _noise(network: Any, seed: int, prompt: str, number: int) -> Tensor:
    generator = keyed_generator(seed, "sample", prompt, number)
    return torch.randn(network.latent_shape, generator=generator)


class _Steps:
    """Reports the steps of a prompt to a progress bar, one by one."""

    def __init__(self, progress: Callable, prompt: str, total: int):
        self.progress, self.what, self.total, self.done = progress, f"sampling {prompt!r}", total, 0

    def __call__(self) -> None:
        self.done += 1
        self.progress(self.what, min(self.done, self.total), self.total)


def _drawn(
    network: Any, prompt: str, noise: Tensor, settings: Mapping, callback: Callable[[], None]
) -> Tensor:
    sampler = {key: settings[key] for key in SAMPLER}
    images = network.sample(prompt, noise, callback=callback, **sampler)
    if not images.isfinite().all():
        raise FloatingPointError(
            f"an image sampled for {prompt!r} is not finite: try precision=float32; if that is "
            "so already, the model's weights hold NaN or infinity"
        )
    return images
