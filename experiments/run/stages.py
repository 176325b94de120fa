"""The stages of a run, each a pure function of its inputs whose result the store keeps: photos,
class images, protected photos, what counter-measures make of them, victims, galleries, scores."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from anticustom.attacks.inputs import AttackInputs, SurrogateInputs
from anticustom.countermeasures import Countermeasure, Unchanged, transformed, with_purifier
from anticustom.customizers.training import CustomizerInputs
from anticustom.draws import SeededDraws, draws_owner
from anticustom.identities import Identity, PhotoSet
from anticustom.images import write_png, write_protected
from experiments.records.naming import decisive, with_contents, without
from experiments.run.photo_files import photo_files, read_back, read_images, slug
from experiments.run.sampling import sample
from experiments.setup.models import Model, surrogate_precision
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
    """A stage that was not asked for, but whose result another one needs."""


@dataclass
class Stages:
    """Runs stages or finds their results. `wanted` are the stages that may compute, by their names
    on the command line. `before` is told the one of them for which something is to be computed.
    """

    store: Store
    wanted: set[str]
    seed: int
    device: str
    checkpoint_minutes: float
    before: Callable[[str], None] = lambda part: None

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
        """Return the artifact of `stage` for these inputs, computed if it is not there and
        `part_of` is wanted.
        """
        key = key_of(stage, VERSIONS[stage], inputs)
        found = self.store.find(stage, key, unit)
        if part_of is not None and part_of not in self.wanted:
            if found is None:
                asked = ",".join([part_of, *sorted(self.wanted)])
                raise StageMissing(
                    f"stages={sorted(self.wanted)}: there is no result of stage {part_of} "
                    f"({what}) for this configuration; "
                    f"run it with stages=[{asked}]"
                )
            return found
        if found is None or self.store.makes_anew(stage, key, unit):
            if part_of is not None:
                self.before(part_of)
            say(f"{what} ...")

        def timed(folder: Path, working: Path) -> Mapping:
            reset_peak_memory()
            checkpoint = TimedCheckpoint(working, self.checkpoint_minutes)
            facts = dict(build(folder, checkpoint))
            facts["seconds"] = round(checkpoint.seconds(), 3)
            return facts | {
                "peak_memory_bytes": peak_memory_bytes(),
                "machine": machine(self.device),
            }

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
        artifact = self.make(
            "photos", identity.name, inputs, build, what=f"{identity.name}: photos"
        )
        return {
            letter: photo_files(artifact.path / f"set_{letter}", photos)
            for letter, photos in sets.items()
        }

    def class_images(
        self, model: Model, prompt: str, settings: Mapping, precision: str, needed_by: str
    ) -> Artifact:
        """Return images of the class, sampled once for each model and prompt."""
        inputs = {"model": model.digest, "prompt": prompt, "sampling": dict(settings)}
        inputs |= {"precision": precision, "seed": self.seed}

        def build(folder: Path, checkpoint: TimedCheckpoint) -> Mapping:
            network = model.load(precision, self.device)
            with bars() as progress:
                (images,) = sample(
                    network, [prompt], settings, self.seed, settings["count"], progress, checkpoint
                )
            for k, image in enumerate(images):
                write_png(folder / f"{k:04}.png", image)
            return {}

        what = f"{settings['count']} class images of {model.name} for {prompt!r}"
        return self.make("class_images", slug(prompt), inputs, build, part_of=needed_by, what=what)

    def protect(
        self,
        identity: Identity,
        attack: Any,
        attack_name: str,
        config: Mapping,
        models: Sequence[Model],
        class_images: Callable[[int], Artifact],
        purifier: Model | None = None,
    ) -> Artifact:
        """Return the protected photos of set B. Of the surrogates `models`, the first has the
        random numbers of an attack on it alone; `class_images(k)` are those of the k-th.
        """
        photos = identity.set_B
        inputs = {
            "photos": photos.digest,
            "attack": with_contents(without(decisive(config), "others", "purifier"), identity.name),
            "seed": self.seed,
        }
        inputs |= {"identity": identity.name}
        if attack.needs_surrogate:
            digest, *others = [model.digest for model in models]
            inputs |= {"clean": identity.set_A.digest, "model": digest}
            inputs |= {"others": others} if others else {}
        inputs |= {"purifier": purifier.digest} if purifier else {}
        if attack.needs_class_images:
            count = 1 if config.get("shared_class_images") else len(models)
            digest, *others = [class_images(k).digest for k in range(count)]
            inputs |= {"class_images": digest}
            inputs |= {"class_images_of_others": others} if others else {}

        def build(folder: Path, checkpoint: TimedCheckpoint) -> Mapping:
            surrogates = []
            for k, model in enumerate(models) if attack.needs_surrogate else ():
                network = model.load(surrogate_precision(config), self.device)
                owner = draws_owner(identity.name, k)
                draws = SeededDraws(self.seed, owner, network.latent_shape)
                surrogates.append(
                    SurrogateInputs(network, draws, lambda k=k: read_images(class_images(k)))
                )
            with bars() as progress:
                protected = attack(
                    AttackInputs(
                        identity=identity.name,
                        names=photos.names,
                        photos=photos.images,
                        seed=self.seed,
                        clean_set=(identity.set_A.names, identity.set_A.images),
                        surrogates=surrogates,
                        purifier=purifier and purifier.load(config["precision"], self.device),
                        progress=progress,
                        checkpoint=checkpoint,
                    )
                )
            budget = max(attack.eps, 1)  # attack=none has none
            write_protected(folder, photos.names, protected, photos.images, budget)
            return {}

        what = f"{identity.name}: protecting {len(photos.names)} photos"
        what += f" ({attack_name}, eps {attack.eps:g})"
        return self.make("protect", identity.name, inputs, build, part_of="protect", what=what)

    def countermeasure(
        self,
        identity: str,
        arm: str,
        photos: PhotoSet,
        countermeasure: Countermeasure,
        name: str,
        config: Mapping,
        model: Model | None,
        precision: str,
    ) -> PhotoSet:
        """Return what the adversary makes of published photos; a purifier is given its `model`."""
        if isinstance(countermeasure, Unchanged):
            return photos
        inputs = {"photos": photos.digest, "countermeasure": decisive(config), "seed": self.seed}
        inputs |= {"identity": identity}
        if model:
            inputs |= {"model": model.digest, "precision": precision}

        def build(folder: Path, checkpoint: TimedCheckpoint) -> Mapping:
            chosen = with_purifier([countermeasure], model and model.load(precision, self.device))
            key = (photos.names, self.seed, identity, "countermeasure")
            with torch.no_grad():
                images = transformed(chosen, photos.images, *key)
            for file, image in zip(photo_files(folder, photos), images, strict=True):
                write_png(file, image)
            return {}

        what = f"{identity}: {name} on the {arm} photos"
        made = self.make("countermeasure", identity, inputs, build, part_of="customize", what=what)
        return read_back(photos, made.path)

    def customize(
        self,
        identity: str,
        arm: str,
        photos: PhotoSet,
        customizer: Any,
        customizer_name: str,
        config: Mapping,
        model: Model,
        class_images: Artifact | None,
    ) -> Artifact:
        """Return the victim trained on `photos`: what its customizer saved. One without prior
        preservation is given no class images.
        """
        names, images = photos.names, photos.images
        inputs = {"photos": photos.digest, "customizer": decisive(config), "model": model.digest}
        inputs |= {"seed": self.seed, "identity": identity}
        inputs |= {"class_images": class_images.digest} if class_images else {}

        def build(folder: Path, checkpoint: TimedCheckpoint) -> Mapping:
            network = model.load(config["precision"], self.device)
            with bars() as progress:
                losses = customizer.customize(
                    CustomizerInputs(
                        model=network,
                        photos=(names, images),
                        class_images=read_images(class_images) if class_images else None,
                        draws=SeededDraws(self.seed, identity, network.latent_shape),
                        progress=progress,
                        checkpoint=checkpoint,
                    )
                )
            customizer.save(network, folder)
            return {"loss": sum(losses[-50:]) / len(losses[-50:]) if losses else None}

        what = f"{identity}: customizing on the {arm} photos ({customizer_name})"
        return self.make("customize", identity, inputs, build, part_of="customize", what=what)

    def gallery(
        self,
        unit: str,
        arm: str,
        victim: Artifact | None,
        customizer: Any,
        model: Model,
        settings: Mapping,
        precision: str,
    ) -> Artifact:
        """Return the gallery of a victim, or of the uncustomized `model` where there is none.

        The initial noise of an image depends on its prompt and index alone, so galleries compare
        image by image.
        """
        inputs = {"model": model.digest, "victim": victim.digest if victim else None}
        inputs |= {"gallery": decisive(settings), "precision": precision, "seed": self.seed}

        def build(folder: Path, checkpoint: TimedCheckpoint) -> Mapping:
            network = model.load(precision, self.device)
            if victim:
                customizer.load(network, victim.path)
            prompts, count = settings["prompts"], settings["images_per_prompt"]
            with bars() as progress:
                drawn = sample(network, prompts, settings, self.seed, count, progress, checkpoint)
            files: dict[str, list[str]] = {}
            for k, (prompt, images) in enumerate(zip(prompts, drawn, strict=True)):
                subfolder = f"{k:02}-{slug(prompt)}"
                (folder / subfolder).mkdir()
                files[prompt] = [f"{subfolder}/{i:03}.png" for i in range(count)]
                for file, image in zip(files[prompt], images, strict=True):
                    write_png(folder / file, image)
            return {"prompts": files}

        what = (
            f"{unit}: gallery of the {arm} victim"
            if victim
            else f"gallery of {model.name}, strangers"
        )
        return self.make("gallery", unit, inputs, build, part_of="customize", what=what)
