"""SimAC as its released code is built, with its waste, to compare its cost with.

Photos and timestep candidates go one at a time in the search. The text encoder runs in every step.
The gradient is taken to all weights too. Photos are encoded again at every step. The models are
copied three times an iteration. The optimizer is rebuilt for every three steps. No result is used.
"""

from copy import deepcopy

import torch
from torch import Tensor

from anticustom.diffusion import LatentDiffusion
from anticustom.finetuning import all_weights
from anticustom.images import project, sign_step
from anticustom.losses import per_image_mse, recorded_features
from experiments.benchmarks.phases import Bench, Call

LAST_LEVEL = (3,)  # of the decoder, whose features the loss compares


def released_search_round(bench: Bench) -> Call:
    """Return a round of the search for one photo: the next photo comes after the whole search."""
    attack, model, photo = bench.attack, _trainable(bench.model), bench.photos(1)

    def call() -> None:
        for _ in range(attack.timestep_policy.candidates):
            _gradient(model, photo, attack.instance_prompt)
        sign_step(photo, _gradient(model, photo, attack.instance_prompt), attack.step_size)

    return call, 1


def released_iteration(bench: Bench) -> Call:
    """Return an iteration: a copy trains on clean photos and is attacked, another on protected."""
    attack, model = bench.attack, _trainable(bench.model)
    photos, classes = bench.photos(bench.count), bench.photos(bench.count + 1)

    def call() -> None:
        attacked = _copied(_trained(_copied(model), bench, photos, classes))
        protected = photos
        for _ in range(attack.steps):
            with torch.no_grad(), recorded_features(attacked, LAST_LEVEL):
                _loss(attacked, photos, attack.instance_prompt)
            with recorded_features(attacked, LAST_LEVEL):
                gradient = _gradient(attacked, protected, attack.instance_prompt)
            moved = sign_step(protected, gradient, attack.step_size)
            protected = project(moved, photos, attack.eps)
        _trained(_copied(model), bench, protected, classes)

    return call, bench.count


def _copied(model: LatentDiffusion) -> LatentDiffusion:
    return _trainable(
        LatentDiffusion(
            vae=model.vae,
            unet=deepcopy(model.unet),
            text_encoder=deepcopy(model.text_encoder),
            tokenizer=model.tokenizer,
            scheduler=model.scheduler,
            mixed=model.mixed,
        )
    )


def _trainable(model: LatentDiffusion) -> LatentDiffusion:
    for parameter in all_weights(model):
        parameter.requires_grad_(True)
    return model


def _loss(model: LatentDiffusion, images: Tensor, prompt: str) -> Tensor:
    embeddings = model.text_embeddings([prompt])
    posterior = model.posterior(images)
    latents = model.latents(posterior, torch.randn_like(posterior.mean))
    noise = torch.randn_like(latents)
    timesteps = torch.randint(0, 1000, (len(images),), device=images.device)
    prediction = model.predict(model.noisy(latents, noise, timesteps), timesteps, embeddings)
    return per_image_mse(prediction, noise).mean()


def _gradient(model: LatentDiffusion, images: Tensor, prompt: str) -> Tensor:
    images = images.detach().requires_grad_()
    _loss(model, images, prompt).backward()
    for parameter in all_weights(model):
        parameter.grad = None
    return images.grad


def _trained(
    model: LatentDiffusion, bench: Bench, photos: Tensor, classes: Tensor
) -> LatentDiffusion:
    attack, schedule = bench.attack, bench.attack.surrogate_schedule
    optimizer = torch.optim.AdamW(all_weights(model), lr=schedule.training.learning_rate)
    for step in range(schedule.training_steps):
        photo, stranger = (images[step % len(photos)][None] for images in (photos, classes))
        loss = _loss(model, photo, attack.instance_prompt)
        loss = loss + _loss(model, stranger, attack.class_prompt)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model
