"""The phases that the benchmark measures, each a call on the shipped code with random inputs."""

import tempfile
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from torch import Tensor, nn

from anticustom import model_files
from anticustom.draws import SeededDraws, draw_batches
from anticustom.finetuning import EncodedPhotos, Trainer, all_weights, encode
from anticustom.identities import Identity, PhotoSet
from anticustom.images import from_8bit, sign_step, write_png
from anticustom.portraits import person, render, shot
from anticustom.surrogates import trained_parameters
from anticustom.timestep_policies import image_gradient_and_loss
from experiments.benchmarks.random_models import random_model
from experiments.setup.building import build_group
from experiments.setup.composing import composed
from experiments.setup.job import NamedImages, attack_inputs


class Bench:
    """A model, the composed configuration for it, and random photos in its size."""

    def __init__(self, model: str, device: str, count: int, memory: str = "40gb"):
        self.device, self.count = device, count
        precision = "mixed" if device == "cuda" else "float32"
        self.dtype = torch.bfloat16 if device == "cuda" else torch.float32
        words = [f"surrogate_model={model}", f"precision={precision}", "attack=simac"]
        words += [f"memory={memory}"]
        self.config = composed(*words)
        folder = model_files.local_folder(self.config.surrogate_model.path)
        self.model = (
            model_files.load(str(folder), device=device, precision=precision)
            if folder
            else random_model(model, device, precision)
        )
        if self.config.memory.gradient_checkpointing:
            self.model.checkpoint_gradients()
        self.size = self.model.image_size
        self.names = tuple(f"{k}.png" for k in range(count))
        self.draws = SeededDraws(0, "benchmark", self.model.latent_shape)

    @cached_property
    def folder(self) -> Path:
        self._kept = tempfile.TemporaryDirectory()  # removed with the bench
        return Path(self._kept.name)

    def photos(self, count: int) -> Tensor:
        generator = torch.Generator().manual_seed(count)
        shape = (count, 3, self.size, self.size)
        return from_8bit(torch.randint(0, 256, shape, generator=generator)).to(self.device)

    @cached_property
    def attack(self) -> Any:
        return build_group(self.config, "attack")

    @cached_property
    def customizer(self) -> Any:
        return build_group(self.config, "customizer")

    @cached_property
    def class_images(self) -> EncodedPhotos:
        return encode(self.model, [f"class {k}" for k in range(4)], self.photos(4))


def greedy_search(bench: Bench) -> tuple[Callable[[], object], int]:
    attack = bench.attack

    def call() -> None:
        attack.timestep_policy.allowed(
            bench.model,
            bench.photos(bench.count),
            bench.names,
            attack.instance_prompt,
            bench.draws,
            eps=attack.eps,
            step_size=attack.step_size,
            progress=lambda *report: None,
        )

    return call, bench.count


def perturbation_step(bench: Bench) -> tuple[Callable[[], object], int]:
    images, attack, model = bench.photos(bench.count), bench.attack, bench.model
    objective = attack.loss.bind(
        model,
        prompt=attack.instance_prompt,
        clean=lambda: model.posterior(images),
        start=lambda: images,
    )
    steps = [model.timesteps] * bench.count
    (draw,) = draw_batches(bench.draws, "perturb", bench.names, 1, steps)
    draw = draw.to(bench.device)

    def call() -> None:
        gradient, _ = image_gradient_and_loss(objective, images, draw)
        sign_step(images, gradient, attack.step_size)

    return call, bench.count


def surrogate_step(bench: Bench) -> tuple[Callable[[], object], int]:
    schedule = bench.attack.surrogate_schedule
    parameters = trained_parameters(schedule, bench.model, 0)
    return _training_step(bench, parameters, schedule.training, bench.attack)


def customizer_step(bench: Bench) -> tuple[Callable[[], object], int]:
    training = bench.customizer.training
    return _training_step(bench, all_weights(bench.model), training, bench.customizer)


def _training_step(
    bench: Bench, parameters: list[nn.Parameter], settings: Any, owner: Any
) -> tuple[Callable[[], object], int]:
    trainer = Trainer(
        bench.model,
        parameters,
        settings,
        instance_prompt=owner.instance_prompt,
        class_prompt=owner.class_prompt,
    )
    photos = encode(bench.model, bench.names, bench.photos(bench.count))

    def call() -> None:
        trainer.train(photos, bench.class_images, 1, bench.draws, "benchmark", photo_set="instance")

    return call, 2 * settings.batch_size


def sampling(bench: Bench) -> tuple[Callable[[], object], int]:
    settings = bench.config.gallery
    count = settings.batch_size
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(count, *bench.model.latent_shape, generator=generator)

    def call() -> None:
        bench.model.sample(
            "a photo of person",
            noise,
            steps=settings.steps,
            guidance_scale=settings.guidance_scale,
            scheduler=settings.scheduler,
            karras_sigmas=settings.karras_sigmas,
        )

    return call, count


def simac(bench: Bench) -> tuple[Callable[[], object], int]:
    return whole(bench, bench.attack)


def whole(
    bench: Bench, attack: Any, others: Sequence[Bench] = (), purifier: Bench | None = None
) -> tuple[Callable[[], object], int]:
    """The whole of an attack on one identity; `others` have an ensemble's further surrogates."""
    photos = PhotoSet(bench.names, bench.photos(bench.count).cpu())
    person = Identity("benchmark", photos, photos, photos)
    models = [bench.model, *(other.model for other in others)]
    weights = [parameter for model in models for parameter in all_weights(model)]
    start = [parameter.detach().clone() for parameter in weights]

    def class_images(k: int) -> NamedImages:
        return ("class",), photos.images[:1]

    def call() -> None:
        with torch.no_grad():
            for parameter, value in zip(weights, start, strict=True):
                parameter.copy_(value)
        attack(attack_inputs(person, 0, models, class_images, purifier and purifier.model))

    return call, bench.count


def scoring(bench: Bench) -> tuple[Callable[[], object], int]:
    """All scores of a gallery of embedded portraits, which all have a face."""
    people = range(bench.count + 1)
    images = render([person(k) for k in people], [shot(k, 0) for k in people], bench.size)
    files = [bench.folder / f"{k}.png" for k in people]
    for file, image in zip(files, images, strict=True):
        write_png(file, image)
    scorer = instantiate(bench.config.metrics, device=bench.device)

    def call() -> None:
        scorer({"a photo": files[1:]}, files[:1])

    return call, bench.count


PHASES = {
    phase.__name__: phase
    for phase in (
        greedy_search,
        perturbation_step,
        surrogate_step,
        customizer_step,
        sampling,
        scoring,
        simac,
    )
}
