"""Sampling images from a model: class images and galleries."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from anticustom.draws import keyed_generator


def sample(
    network: Any, prompt: str, settings: Mapping, seed: int, count: int, progress: Callable
) -> Tensor:
    """Return `count` images (n, 3, h, w) in [0, 1]; image i depends on (seed, prompt, i), not on
    the batching.
    """
    noise = torch.stack(
        [
            torch.randn(network.latent_shape, generator=keyed_generator(seed, "sample", prompt, k))
            for k in range(count)
        ]
    )
    batches = noise.split(settings["batch_size"])
    done, total = 0, len(batches) * settings["steps"]

    def step() -> None:
        nonlocal done
        done += 1
        progress(f"sampling {prompt!r}", min(done, total), total)

    images = torch.cat(
        [
            network.sample(
                prompt,
                batch,
                steps=settings["steps"],
                guidance_scale=settings["guidance_scale"],
                scheduler=settings["scheduler"],
                karras_sigmas=settings["karras_sigmas"],
                callback=step,
            )
            for batch in batches
        ]
    )
    if not images.isfinite().all():
        raise FloatingPointError(
            f"an image sampled for {prompt!r} is not finite: try precision=float32; if that is "
            "so already, the model's weights hold NaN or infinity"
        )
    return images
