"""A dry step on a GPU: whether the stages of a job fit its memory, tried before any long work."""

import gc
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch

from anticustom.identities import Identity
from anticustom.progress import NoCheckpoint, silent
from anticustom.timestep_policies import AdaptiveGreedy
from experiments.run.outcome import ARMS
from experiments.run.sampling import sample
from experiments.run.stages import StageMissing, Stages
from experiments.setup.building import Refused
from experiments.setup.composing import memory_presets
from experiments.setup.fitting import BASE_MODEL
from experiments.setup.job import Job, NamedImages
from experiments.terminal import say

# of a training: AdamW's moments come with the first step, and ASPL's copy of them with the second
TRAINING_STEPS = 2
SAMPLER_STEPS = 4  # PNDM takes no fewer


def check_memory(stages: Stages, identity: Identity) -> None:
    """Try the first steps of each stage whose results for the identity are still missing.

    Raises Refused, which names the next smaller preset of `memory`, if the device lacks memory.
    No number of the run moves: models are copies, random numbers are keyed, results are dropped.
    """
    job, done = stages.job, _done(stages, identity)
    customizer = f"customizer={job.choices['customizer']}"
    for stage, step, name, alternative in (
        ("protect", attack_step, f"attack={job.choices['attack']}", ""),
        ("customize", customizer_step, customizer, ", or with customizer=lora"),
        ("customize", gallery_step, "the gallery", ", or with a lower gallery.batch_size"),
    ):
        forced = stage in job.config["force"]
        if stage not in stages.wanted or (step in done and not forced):
            continue
        say(f"trying the first steps of {name} on {job.device} ...")
        with torch.random.fork_rng([] if job.device == "cpu" else [job.device]):
            fits = _fits(lambda step=step: step(job, identity))
        if not fits:
            advice = less_memory(job.choices)
            raise Refused(f"{name} does not fit the memory of {job.device}: {advice}{alternative}")
    _free_memory()


def less_memory(choices: Mapping[str, str]) -> str:
    """Return the advice to run with the preset for the next smaller card."""
    presets, preset = memory_presets(), choices["memory"]
    smaller = presets[presets.index(preset) + 1 :]
    return f"run with memory={smaller[0]}" if smaller else f"no preset takes less than {preset}"


def _done(stages: Stages, identity: Identity) -> set[Callable]:
    """Return the steps whose stages have left all their results for the identity."""
    lookup, done = replace(stages, wanted=()), set()
    with suppress(StageMissing):
        protected = lookup.protect(identity)
        done.add(attack_step)
        photos = lookup.training_photos(identity, protected)
        victims = [lookup.customize(identity.name, arm, photos[arm]) for arm in ARMS]
        done.add(customizer_step)
        for victim in victims:
            lookup.gallery(identity.name, "", victim)
        done.add(gallery_step)
    return done


def _fits(step: Callable[[], object]) -> bool:
    _free_memory()  # of earlier steps and jobs
    try:
        with suppress(ValueError, FloatingPointError):  # the run itself raises these
            step()
    except torch.OutOfMemoryError:
        return False
    return True


def _free_memory() -> None:
    gc.collect()
    torch.cuda.empty_cache()


def attack_step(job: Job, identity: Identity) -> None:
    """Attack with single steps, after a round of the timestep search and short trainings."""
    prompt = job.config["attack"].get("class_prompt")
    images = [
        _class_images(job, key, prompt) for key in job.surrogates if job.attack.needs_class_images
    ]
    shortened_attack(job.attack)(job.attack_inputs(identity, images.__getitem__))


def shortened_attack(attack: Any) -> Any:
    """Return an attack of two iterations, each with one step on the photos."""
    attack = _at_most(attack, steps=1)
    policy = getattr(attack, "timestep_policy", None)
    if isinstance(policy, AdaptiveGreedy):
        keep = max(policy.keep, 1000 - policy.window)  # reached in one round
        attack = replace(attack, timestep_policy=replace(policy, max_rounds=1, keep=keep))
    if schedule := getattr(attack, "surrogate_schedule", None):
        schedule = _at_most(schedule, iterations=2, training_steps=TRAINING_STEPS)
        attack = replace(attack, surrogate_schedule=schedule)
    return attack


def customizer_step(job: Job, identity: Identity) -> None:
    """Train a victim for the first steps."""
    images = None
    if job.customizer.training.preserves_prior:
        images = _class_images(job, BASE_MODEL, job.config["customizer"]["class_prompt"])
    inputs = job.customizer_inputs(
        identity.name, identity.set_B, images, progress=silent, checkpoint=NoCheckpoint()
    )
    _at_most(job.customizer, steps=TRAINING_STEPS).customize(inputs)


def gallery_step(job: Job, identity: Identity) -> None:
    """Draw the first batch of a gallery in few steps of its sampler."""
    settings = job.config["gallery"]
    prompt, count = settings["prompts"][0], settings["images_per_prompt"]
    _batch(job, BASE_MODEL, prompt, settings, count)


def _class_images(job: Job, key: str, prompt: str) -> NamedImages:
    """Return a batch of class images, drawn in few steps of the sampler."""
    settings = job.class_image_settings(key)
    images = _batch(job, key, prompt, settings, settings["count"])
    return tuple(f"{k:04}.png" for k in range(len(images))), images


def _batch(job: Job, key: str, prompt: str, settings: Mapping, count: int) -> torch.Tensor:
    network = job.models[key].load(job.precision, job.device)
    steps, count = min(SAMPLER_STEPS, settings["steps"]), min(count, settings["batch_size"])
    (images,) = sample(network, [prompt], {**settings, "steps": steps}, job.seed, count, silent)
    return images


def _at_most(settings: Any, **limits: int) -> Any:
    """Return a dataclass whose counts are at most these; counts that it lacks are left out."""
    counts = {
        name: min(getattr(settings, name), limit)
        for name, limit in limits.items()
        if hasattr(settings, name)
    }
    return replace(settings, **counts) if counts else settings
