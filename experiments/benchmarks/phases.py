"""The phases that the benchmark measures: each is a call of the shipped code on random photos."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from torch import Tensor, nn

from anticustom import model_files, surrogates
from anticustom.chunks import Chunks
from anticustom.diffusion import Posterior
from anticustom.draws import SeededDraws, draw_batches
from anticustom.finetuning import EncodedPhotos, Trainer, all_weights, encode
from anticustom.identities import Identity, PhotoSet
from anticustom.images import from_8bit, project, sign_step, write_png
from anticustom.portraits import person, render, shot
from anticustom.progress import silent
from anticustom.timestep_policies import image_gradient_and_loss
from experiments.benchmarks.random_models import SHAPES, random_model
from experiments.setup.building import build_group
from experiments.setup.composing import composed
from experiments.setup.job import NamedImages, attack_inputs

Call = tuple[Callable[[], object], int]  # with the number of images that a call works on


class Bench:
    """A model, the configuration composed for it, and random photos of its size.

    `model` is one of SHAPES or an embedded model. The shape `small` takes the settings of sd21.
    `precision="auto"` is mixed on a GPU and float32 elsewhere.
    """

    def __init__(
        self, model: str, device: str, count: int, memory: str = "40gb", precision: str = "auto"
    ):
        if precision == "auto":
            precision = "mixed" if device == "cuda" else "float32"
        self.device, self.count, self.precision = device, count, precision
        settings = "sd21" if model == "small" else model
        words = [f"surrogate_model={settings}", f"precision={precision}", f"memory={memory}"]
        self.config = composed("attack=simac", *words)
        if model in SHAPES:
            self.model = random_model(model, device, precision)
        else:
            path = self.config.surrogate_model.path
            self.model = model_files.load(path, device=device, precision=precision)
        if self.config.memory.gradient_checkpointing:
            self.model.checkpoint_gradients()
        self.names = tuple(f"{k}.png" for k in range(count))
        self.draws = SeededDraws(0, "benchmark", self.model.latent_shape)

    def photos(self, count: int) -> Tensor:
        generator = torch.Generator().manual_seed(count)
        shape = (count, 3, self.model.image_size, self.model.image_size)
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


def search_round(bench: Bench) -> Call:
    """Return a round of the greedy search: it deletes one window of timesteps of each photo."""
    attack, photos = bench.attack, bench.photos(bench.count)
    policy = attack.timestep_policy
    one_round = replace(policy, keep=len(bench.model.timesteps) - policy.window)

    def call() -> None:
        one_round.allowed(
            bench.model,
            photos,
            bench.names,
            attack.instance_prompt,
            bench.draws,
            eps=attack.eps,
            step_size=attack.step_size,
            progress=silent,
        )

    return call, bench.count


def perturbation_step(bench: Bench) -> Call:
    photos = bench.photos(bench.count)
    with torch.no_grad():
        clean = bench.model.posterior(photos)
    return lambda: _perturb(bench, photos, clean, steps=1), bench.count


def _perturb(bench: Bench, photos: Tensor, clean: Posterior, steps: int) -> Tensor:
    """Return `photos` after some steps, of as many photos at once as memory holds."""
    attack, model = bench.attack, bench.model
    allowed = [model.timesteps] * len(photos)
    draws = draw_batches(bench.draws, "perturb", bench.names, steps, allowed)

    def ascend(rows: slice) -> Tensor:
        images = start = photos[rows]
        objective = attack.loss.bind(
            model, prompt=attack.instance_prompt, clean=lambda: clean[rows], start=lambda: start
        )
        for draw in draws:
            gradient, _ = image_gradient_and_loss(objective, images, draw[rows].to(bench.device))
            images = project(sign_step(images, gradient, attack.step_size), start, attack.eps)
        return images

    return torch.cat(Chunks()(ascend, len(photos)))


def surrogate_step(bench: Bench) -> Call:
    schedule = bench.attack.surrogate_schedule
    parameters = surrogates.trained_parameters(schedule, bench.model, 0)
    return _training_step(bench, parameters, schedule.training, bench.attack)


def customizer_step(bench: Bench) -> Call:
    training = bench.customizer.training
    return _training_step(bench, all_weights(bench.model), training, bench.customizer)


def _training_step(
    bench: Bench, parameters: list[nn.Parameter], settings: Any, prompts: Any
) -> Call:
    trainer = Trainer(
        bench.model,
        parameters,
        settings,
        instance_prompt=prompts.instance_prompt,
        class_prompt=prompts.class_prompt,
    )
    photos = encode(bench.model, bench.names, bench.photos(bench.count))

    def call() -> None:
        trainer.train(photos, bench.class_images, 1, bench.draws, "benchmark", photo_set="instance")

    return call, 2 * settings.batch_size


def simac_iteration(bench: Bench) -> Call:
    """Return an iteration of SimAC: a copy of the surrogate trains on clean photos and is attacked,
    then the surrogate trains on the protected photos (Anti-DreamBooth's algorithm 1).
    """
    attack, photos = bench.attack, bench.photos(bench.count)
    schedule = attack.surrogate_schedule
    surrogate = surrogates.start(
        schedule,
        bench.model,
        bench.draws,
        instance_prompt=attack.instance_prompt,
        class_prompt=attack.class_prompt,
        clean=(bench.names, photos),
        class_images=(("class",), photos[:1]),
        seed=0,
    )

    def call() -> None:
        with schedule.attackable(surrogate, 0, silent, save=lambda: None):
            protected = _perturb(bench, photos, surrogate.clean.posterior, attack.steps)
        schedule.follow(surrogate, 0, bench.names, protected, silent)

    return call, bench.count


def sampling(bench: Bench) -> Call:
    """Return the sampling of a batch of a gallery in 20 steps at most, for all cost the same."""
    settings = bench.config.gallery
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(settings.batch_size, *bench.model.latent_shape, generator=generator)

    def call() -> None:
        bench.model.sample(
            "a photo of person",
            noise,
            steps=min(settings.steps, 20),
            guidance_scale=settings.guidance_scale,
            scheduler=settings.scheduler,
            karras_sigmas=settings.karras_sigmas,
        )

    return call, settings.batch_size


def whole(
    bench: Bench, attack: Any, others: Sequence[Bench] = (), purifier: Bench | None = None
) -> Call:
    """Return a whole attack on one identity, which changes the weights of the surrogates.

    An ensemble's further surrogates are those of `others`.
    """
    photos = PhotoSet(bench.names, bench.photos(bench.count).cpu())
    identity = Identity("benchmark", photos, photos, photos)
    models = [member.model for member in (bench, *others)]

    def class_images(k: int) -> NamedImages:
        return ("class",), photos.images[:1]

    def call() -> None:
        attack(attack_inputs(identity, 0, models, class_images, purifier and purifier.model))

    return call, bench.count


def scoring(bench: Bench) -> Call:
    """Return all scores of a gallery of embedded portraits, which all have a face."""
    people = range(bench.count + 1)
    size = max(bench.model.image_size, 128)  # below, faces are not found
    images = render([person(k) for k in people], [shot(k, 0) for k in people], size)
    folder = tempfile.TemporaryDirectory()
    files = [Path(folder.name, f"{k}.png") for k in people]
    for file, image in zip(files, images, strict=True):
        write_png(file, image)
    scorer = instantiate(bench.config.metrics, device=bench.device)

    def call() -> None:
        assert folder  # the folder lasts as long as the call
        scorer({"a photo": files[1:]}, files[:1])

    return call, bench.count
