"""SimAC as its released code is built, with its waste, to compare its cost with.

Photos and timestep candidates go one at a time in the search; the text encoder runs in every step;
the gradient is taken to all weights too; photos are encoded again at every step; the models are
copied three times an iteration; the optimizer is rebuilt for every three steps. It computes no
result that is used.
"""

from collections.abc import Callable
from copy import deepcopy

import torch
from torch import Tensor, nn

from anticustom.diffusion import LatentDiffusion
from anticustom.images import project, sign_step
from anticustom.losses import per_image_mse, recorded_features
from experiments.benchmarks.phases import Bench

ROUNDS = 30  # of the search, about as many as it takes


def simac_as_released(bench: Bench) -> tuple[Callable[[], object], int]:
    photos, classes = bench.photos(bench.count), bench.photos(bench.count + 1)
    schedule, eps, step = bench.attack.surrogate_schedule, bench.attack.eps, bench.attack.step_size

    def call() -> None:
        model = _trainable(deepcopy(bench.model))
        for photo in photos:
            image = photo[None]
            for _ in range(ROUNDS):
                for _ in range(bench.attack.timestep_policy.candidates):
                    _gradient(model, bench, image)
                image = sign_step(image, _gradient(model, bench, image), step)
        protected = photos
        for _ in range(schedule.iterations):
            attacked = _trained(_copied(model), bench, photos, classes)
            attacked = _copied(attacked)
            start = protected
            for _ in range(bench.attack.steps):
                with torch.no_grad(), recorded_features(attacked, (3,)):
                    _loss(attacked, start, bench.attack.instance_prompt)
                with recorded_features(attacked, (3,)):
                    gradient = _gradient(attacked, bench, protected)
                protected = project(sign_step(protected, gradient, step), photos, eps)
            model = _trained(_copied(model), bench, protected, classes)

    return call, bench.count


def _copied(model: LatentDiffusion) -> LatentDiffusion:
    parts = {part: deepcopy(getattr(model, part)) for part in ("unet", "text_encoder")}
    fields = {f: getattr(model, f) for f in ("vae", "tokenizer", "scheduler", "mixed")}
    return _trainable(LatentDiffusion(**fields, **parts))


def _trainable(model: LatentDiffusion) -> LatentDiffusion:
    for network in (model.unet, model.text_encoder):
        network.requires_grad_(True)
    return model


def _loss(model: LatentDiffusion, images: Tensor, prompt: str) -> Tensor:
    embeddings = model.text_embeddings([prompt])
    posterior = model.posterior(images)
    latents = model.latents(posterior, torch.randn_like(posterior.mean))
    noise = torch.randn_like(latents)
    timesteps = torch.randint(0, 1000, (len(images),), device=images.device)
    prediction = model.predict(model.noisy(latents, noise, timesteps), timesteps, embeddings)
    return per_image_mse(prediction, noise).mean()


def _gradient(model: LatentDiffusion, bench: Bench, images: Tensor) -> Tensor:
    images = images.detach().requires_grad_()
    _loss(model, images, bench.attack.instance_prompt).backward()
    for network in (model.unet, model.text_encoder):
        network.zero_grad()
    return images.grad


def _trained(
    model: LatentDiffusion, bench: Bench, photos: Tensor, classes: Tensor
) -> LatentDiffusion:
    settings = bench.attack.surrogate_schedule
    weights: list[nn.Parameter] = [*model.unet.parameters(), *model.text_encoder.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=settings.training.learning_rate)
    for step in range(settings.training_steps):
        k = step % len(photos)
        loss = _loss(model, photos[k : k + 1], bench.attack.instance_prompt)
        loss = loss + _loss(model, classes[k : k + 1], bench.attack.class_prompt)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model
