"""The stages of a run, each a pure function of its inputs whose result the store keeps: photos,
class images, protected photos, photos after a counter-measure, victims, galleries, scores.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from anticustom.countermeasures import Unchanged, transformed, with_purifier
from anticustom.identities import Identity, PhotoSet, with_clean_photos
from anticustom.images import write_png, write_protected
from experiments.records.naming import decisive, with_contents, without
from experiments.run.photo_files import photo_files, read_back, read_images, slug
from experiments.run.sampling import sample
from experiments.setup.fitting import ATTACK_PURIFIER, BASE_MODEL, PURIFIER
from experiments.setup.job import Job
from experiments.store.artifacts import Artifact, Store, key_of
from experiments.store.checkpoints import TimedCheckpoint
from experiments.store.provenance import machine, peak_memory_bytes, reset_peak_memory
from experiments.terminal import bars, say

# raised when the numbers that a stage gives for equal inputs change
VERSIONS = {
    "photos": 1,
    "class_images": 1,
    "protect": 2,
    "countermeasure": 1,
    "customize": 1,
    "gallery": 1,
    "eval": 1,
}


class StageMissing(ValueError):
    """A result that another stage needs is missing, and its own stage is not wanted."""


@dataclass
class Stages:
    """The stages of a job. They compute their results, or find them in the store.

    `wanted` are the stages that may compute, by their names on the command line.
    """

    job: Job
    store: Store
    wanted: Collection[str]

    def make(
        self,
        stage: str,
        unit: str,
        inputs: Mapping[str, Any],
        build: Callable[[Path, TimedCheckpoint], Mapping],
        *,
        part_of: str | None = None,
        what: str,
    ) -> Artifact:
        """Return the artifact of `stage` for these inputs, computed if it is not there.

        Raises StageMissing if it is not there and the stage `part_of` of the command line is not
        wanted. `what` says in the run's output what is computed.
        """
        key = key_of(stage, VERSIONS[stage], inputs)
        artifact = self.store.find(stage, key, unit)
        if part_of is not None and part_of not in self.wanted:
            if artifact is None:
                stages = ",".join([part_of, *sorted(self.wanted)])
                raise StageMissing(
                    f"stages={sorted(self.wanted)}: there is no result of stage {part_of} "
                    f"({what}) for this configuration; run it with stages=[{stages}]"
                )
            return artifact
        if artifact is None or self.store.makes_anew(stage, key, unit):
            say(f"{what} ...")

        def timed(folder: Path, working: Path) -> Mapping:
            reset_peak_memory()
            checkpoint = TimedCheckpoint(working, self.job.config["checkpoint_minutes"])
            facts = dict(build(folder, checkpoint))
            facts["seconds"] = round(checkpoint.seconds(), 3)
            facts["peak_memory_bytes"] = peak_memory_bytes()
            return facts | {"machine": machine(self.job.device)}

        return self.store.make(stage, key, unit, timed, inputs=inputs)

    def photos(self, identity: Identity) -> dict[str, list[Path]]:
        """Write the clean crops of an identity; return the files of its sets A, B and C."""
        sets = {"A": identity.set_A, "B": identity.set_B, "C": identity.set_C}

        def build(folder: Path, checkpoint: TimedCheckpoint) -> Mapping:
            for letter, photos in sets.items():
                if len(photos.names):
                    write_protected(
                        folder / f"set_{letter}", photos.names, photos.images, photos.images, 1
                    )
            return {}

        inputs = {letter: photos.digest for letter, photos in sets.items()}
        what = f"{identity.name}: photos"
        artifact = self.make("photos", identity.name, inputs, build, what=what)
        return {
            letter: photo_files(artifact.path / f"set_{letter}", photos)
            for letter, photos in sets.items()
        }

    def class_images(self, key: str, prompt: str, part_of: str) -> Artifact:
        """Return images of the class, sampled once for each model and prompt.

        `key` is that of the model in the configuration.
        """
        job, model, settings = self.job, self.job.models[key], self.job.class_image_settings(key)
        inputs = {"model": model.digest, "prompt": prompt, "sampling": dict(settings)}
        inputs |= {"precision": job.precision, "seed": job.seed}

        def build(folder: Path, checkpoint: TimedCheckpoint) -> Mapping:
            network, count = model.load(job.precision, job.device), settings["count"]
            with bars() as progress:
                (images,) = sample(
                    network, [prompt], settings, job.seed, count, progress, checkpoint
                )
            for k, image in enumerate(images):
                write_png(folder / f"{k:04}.png", image)
            return {}

        what = f"{settings['count']} class images of {model.name} for {prompt!r}"
        return self.make("class_images", slug(prompt), inputs, build, part_of=part_of, what=what)

    def protect(self, identity: Identity) -> Artifact:
        """Return the protected photos of set B."""
        job, attack, config = self.job, self.job.attack, self.job.config["attack"]
        keys, purifier = list(job.surrogates), job.models.get(ATTACK_PURIFIER)

        def class_images(k: int) -> Artifact:
            return self.class_images(keys[k], config["class_prompt"], "protect")

        photos = identity.set_B
        inputs = {
            "photos": photos.digest,
            "attack": with_contents(without(decisive(config), "others", "purifier"), identity.name),
            "seed": job.seed,
        }
        inputs |= {"identity": identity.name}
        if attack.needs_surrogate:
            digest, *others = [model.digest for model in job.surrogates.values()]
            inputs |= {"clean": identity.set_A.digest, "model": digest}
            inputs |= {"others": others} if others else {}
        inputs |= {"purifier": purifier.digest} if purifier else {}
        if attack.needs_class_images:
            count = 1 if config.get("shared_class_images") else len(keys)
            digest, *others = [class_images(k).digest for k in range(count)]
            inputs |= {"class_images": digest}
            inputs |= {"class_images_of_others": others} if others else {}

        def build(folder: Path, checkpoint: TimedCheckpoint) -> Mapping:
            with bars() as progress:
                protected = attack(
                    job.attack_inputs(
                        identity,
                        lambda k: read_images(class_images(k)),
                        progress=progress,
                        checkpoint=checkpoint,
                    )
                )
            budget = max(attack.eps, 1)  # attack=none has none
            write_protected(folder, photos.names, protected, photos.images, budget)
            return {}

        what = f"{identity.name}: protecting {len(photos.names)} photos"
        what += f" ({job.choices['attack']}, eps {attack.eps:g})"
        return self.make("protect", identity.name, inputs, build, part_of="protect", what=what)

    def training_photos(self, identity: Identity, protected: Artifact) -> dict[str, PhotoSet]:
        """Return the photos that the adversary trains on in each arm.

        Some may be clean photos of set C, and all pass the counter-measure.
        """
        clean, count = identity.set_C, self.job.config["clean_photos"]
        published = {
            "unprotected": identity.set_B,
            "protected": read_back(identity.set_B, protected.path),
        }
        mixed = {arm: with_clean_photos(photos, clean, count) for arm, photos in published.items()}
        return {
            arm: self.countermeasure(identity.name, arm, photos) for arm, photos in mixed.items()
        }

    def countermeasure(self, identity: str, arm: str, photos: PhotoSet) -> PhotoSet:
        """Return the photos as the adversary changes them before training."""
        job, model = self.job, self.job.models.get(PURIFIER)
        if isinstance(job.countermeasure, Unchanged):
            return photos
        config = without(job.config["countermeasure"], "model")
        inputs = {"photos": photos.digest, "countermeasure": decisive(config), "seed": job.seed}
        inputs |= {"identity": identity}
        if model:
            inputs |= {"model": model.digest, "precision": job.precision}

        def build(folder: Path, checkpoint: TimedCheckpoint) -> Mapping:
            network = model and model.load(job.precision, job.device)
            chosen = with_purifier([job.countermeasure], network)
            key = (photos.names, job.seed, identity, "countermeasure")
            with torch.no_grad():
                images = transformed(chosen, photos.images, *key)
            for file, image in zip(photo_files(folder, photos), images, strict=True):
                write_png(file, image)
            return {}

        what = f"{identity}: {job.choices['countermeasure']} on the {arm} photos"
        made = self.make("countermeasure", identity, inputs, build, part_of="customize", what=what)
        return read_back(photos, made.path)

    def customize(self, identity: str, arm: str, photos: PhotoSet) -> Artifact:
        """Return the victim trained on `photos`, as its customizer saved it."""
        job, customizer, model = self.job, self.job.customizer, self.job.base_model
        config, class_images = without(job.config["customizer"], "base_model"), None
        if customizer.training.preserves_prior:
            class_images = self.class_images(BASE_MODEL, config["class_prompt"], "customize")
        inputs = {"photos": photos.digest, "customizer": decisive(config), "model": model.digest}
        inputs |= {"seed": job.seed, "identity": identity}
        inputs |= {"class_images": class_images.digest} if class_images else {}

        def build(folder: Path, checkpoint: TimedCheckpoint) -> Mapping:
            images = read_images(class_images) if class_images else None
            with bars() as progress:
                given = job.customizer_inputs(
                    identity, photos, images, progress=progress, checkpoint=checkpoint
                )
                losses = customizer.customize(given)
            customizer.save(given.model, folder)
            return {"loss": sum(losses[-50:]) / len(losses[-50:]) if losses else None}

        what = f"{identity}: customizing on the {arm} photos ({job.choices['customizer']})"
        return self.make("customize", identity, inputs, build, part_of="customize", what=what)

    def gallery(self, unit: str, arm: str, victim: Artifact | None) -> Artifact:
        """Return the gallery of a victim, or that of the uncustomized base model for None.

        The initial noise of an image depends on its prompt and index alone, so galleries compare
        image by image.
        """
        job, model, settings = self.job, self.job.base_model, self.job.config["gallery"]
        precision = job.precision
        inputs = {"model": model.digest, "victim": victim.digest if victim else None}
        inputs |= {"gallery": decisive(settings), "precision": precision, "seed": job.seed}

        def build(folder: Path, checkpoint: TimedCheckpoint) -> Mapping:
            network = model.load(precision, job.device)
            if victim:
                job.customizer.load(network, victim.path)
            prompts, count = settings["prompts"], settings["images_per_prompt"]
            with bars() as progress:
                drawn = sample(network, prompts, settings, job.seed, count, progress, checkpoint)
            files: dict[str, list[str]] = {}
            for k, (prompt, images) in enumerate(zip(prompts, drawn, strict=True)):
                subfolder = f"{k:02}-{slug(prompt)}"
                (folder / subfolder).mkdir()
                files[prompt] = [f"{subfolder}/{i:03}.png" for i in range(count)]
                for file, image in zip(files[prompt], images, strict=True):
                    write_png(folder / file, image)
            return {"prompts": files}

        what = f"{unit}: gallery of the {arm} victim"
        if victim is None:
            what = f"gallery of {model.name}, strangers"
        return self.make("gallery", unit, inputs, build, part_of="customize", what=what)
