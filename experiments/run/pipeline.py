"""The pipeline protect -> customize -> eval of one configuration, over all its identities."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from anticustom.identities import Identity, with_clean_photos
from experiments.records.naming import drawing, without
from experiments.records.record import read
from experiments.run.outcome import ARMS, Outcome, publish
from experiments.run.photo_files import read_back
from experiments.run.scores import Scores
from experiments.run.stages import StageMissing, Stages
from experiments.run.table import print_table
from experiments.run.tracking import filled_in
from experiments.setup.building import Refused, build, model_of
from experiments.setup.devices import chosen_device, use
from experiments.setup.fitting import (
    check_layers_exist,
    check_others,
    check_purifier,
    check_scale,
    size_of_all,
)
from experiments.setup.memory import check_fits, free_bytes
from experiments.setup.models import Model
from experiments.setup.settings import PARTS, check_settings, shard_of
from experiments.store.artifacts import Artifact, Store
from experiments.store.disk import StoreError, check_writable
from experiments.terminal import say

# settings of the adversary in which the victim's base model is not the surrogate
OTHER_MODEL = ("other_model", "all_other")
PURIFIER, OWN_PURIFIER = "countermeasure.model", "attack.purifier"
DIGESTS = {PURIFIER: "purifier", OWN_PURIFIER: OWN_PURIFIER}  # their names in records
# what a sweep's jobs in this process made anew: none does again what it shares with another
RENEWED: set[Path] = set()


class SomeFailed(ValueError):
    """Some of several identities failed; `paths` are the records of the others."""

    def __init__(self, failed: Mapping[str, str], count: int, paths: list[Path]):
        reasons = "; ".join(f"{name}: {error}" for name, error in failed.items())
        super().__init__(f"{len(failed)} of {count} failed: {reasons}")
        self.paths = paths


class Pipeline:
    """One configuration with everything that it names, checked."""

    def __init__(self, config: DictConfig, choices: Mapping[str, str], neighbour: int = 0):
        self.choices = choices
        if missing := OmegaConf.missing_keys(config):
            raise Refused(f"{', '.join(sorted(missing))}: set it, for it has no default")
        self.output_dir = Path(config.output_dir)
        self.device = chosen_device(config.device, neighbour)
        use(self.device)
        if config.precision == "auto":
            config.precision = "mixed" if self.device.startswith("cuda") else "float32"
        self.composed = config
        self.config = OmegaConf.to_container(config, resolve=True)
        check_settings(self.config)
        self.dataset = build(without(self.config["dataset"], "shard"))
        self.attack = build(without(self.config["attack"], "others", "purifier"))
        self.countermeasure = build(without(self.config["countermeasure"], "model"))
        self.customizer = build(without(self.config["customizer"], "base_model", "precision"))
        self.scorer = build(config.metrics, device=self.device)
        self.tracker = build(
            filled_in(config.tracker, config.dataset._target_, choices.get("experiment"))
        )
        self.surrogate_model = self._model(config.surrogate_model)
        others = self.config["attack"].get("others", {})  # surrogates of an ensemble
        self.surrogates = {"surrogate_model": self.surrogate_model}
        self.surrogates |= {f"attack.others.{k}": self._model(node) for k, node in others.items()}
        self.base_model = self._model(config.customizer.base_model)
        purifiers = {
            PURIFIER: self.config["countermeasure"].get("model"),
            OWN_PURIFIER: self.config["attack"].get("purifier"),
        }
        self.purifiers = {key: self._model(node) for key, node in purifiers.items() if node}
        check_purifier(self.attack, OWN_PURIFIER in self.purifiers)
        self.models = {**self.surrogates, "customizer.base_model": self.base_model}
        self.models |= self.purifiers
        self._refuse_what_is_missing()
        self.identities = shard_of(self.dataset.names(), self.config["dataset"]["shard"])
        check_writable(self.output_dir)
        self.stages = Stages(
            Store(
                self.output_dir / "store",
                {part for stage in self.config["force"] for part in PARTS[stage]},
                RENEWED,
            ),
            set(self.config["stages"]),
            self.config["seed"],
            self.device,
            self.config["checkpoint_minutes"],
            self._check_memory,
        )
        self.fitting: set[str] = set()  # stages that were found to fit the GPU

    def _model(self, node: Mapping) -> Model:
        return model_of(node, self.config["memory"]["gradient_checkpointing"])

    def _refuse_what_is_missing(self) -> None:
        missing = []
        for check in (self.dataset.names, self._check_scale):
            try:
                check()
            except ValueError as error:
                missing.append(str(error))
        if missing:
            raise Refused("; ".join(missing))

    def _check_scale(self) -> None:
        if self.device == "cpu" != self.config["device"]:
            protects = self.attack.needs_surrogate and "protect" in self.config["stages"]
            customizes = "customize" in self.config["stages"]
            protecting = {*self.surrogates, OWN_PURIFIER}
            used = {key: protects if key in protecting else customizes for key in self.models}
            check_scale(self.config, [key for key, is_used in used.items() if is_used])

    def run(self) -> list[Path]:
        """Run all identities, one after the other; return their records' paths.

        What of a model or any identity does not fit is refused before the first, what does not fit
        the GPU's memory before the first that takes it.
        What fails with one of several identities is raised after the others, as SomeFailed.
        """
        if not self.identities:
            shard, count = self.config["dataset"]["shard"], len(self.dataset.names())
            say(f"dataset.shard={shard} of {count} identities holds none: there is nothing to do")
            return []
        size = self._photo_size()  # looks the models up: what is missing is missed before any work
        check_layers_exist(self.attack, self.surrogates, self.customizer, self.base_model)
        paths, failed = [], {}
        for identity, scores in self._identities(size):
            try:
                path = self._identity(identity, scores)
            except (StoreError, StageMissing):
                raise
            except (ValueError, FloatingPointError) as error:
                if len(self.identities) == 1:
                    raise
                failed[identity.name] = str(error)  # its traceback would hold the models
                say(f"error: {identity.name}: {error}; going on with the others")
            else:
                paths += [path] if path else []
        if paths:
            written = [read(path) for path in paths]
            print_table(written)
            say(str(paths[-1]))
        if failed:
            raise SomeFailed(failed, len(self.identities), paths)
        return paths

    def _photo_size(self) -> int:
        size = size_of_all(self.models)
        others = {key for key in self.surrogates if self.attack.needs_surrogate}
        others |= {"customizer.base_model"} if self.choices["adversary"] in OTHER_MODEL else set()
        check_others(self.models, {"surrogate_model"}, others - {"surrogate_model"})
        if self.attack.needs_surrogate:
            check_others(self.models, set(self.surrogates), self.purifiers.keys() & {PURIFIER})
        return size

    def _check_memory(self, part: str) -> None:
        """Refuse what does not fit before the first of it is computed, and before what goes before
        it: what is done takes nothing.
        """
        ahead = ["protect", "customize"] if part == "protect" else [part]
        to_check = [one for one in ahead if one in self.stages.wanted - self.fitting]
        available = free_bytes(self.device) if to_check else None
        if available is not None:
            folders = {key: model.folder for key, model in self.models.items() if key != PURIFIER}
            check_fits(to_check, self.composed, folders, self.choices, available)
        self.fitting |= set(to_check)

    def _identities(self, size: int) -> list[tuple[Identity, Scores]]:
        """Return the identities, each with what scores it; raise Refused for all whose photos
        cannot be used, or, of photos that somebody else protected, cannot be taken for theirs.
        """

        def found(name: str) -> tuple[Identity, Scores]:
            identity = self.dataset.read(name, size)
            with_clean_photos(identity.set_B, identity.set_C, self.config["clean_photos"])
            photos = self.stages.photos(identity)
            scores = Scores(self.stages, self.scorer, self.config["metrics"], identity, photos)
            if self.stages.wanted > {"eval"}:
                scores.check_reference()
            return identity, scores

        identities = for_all(found, self.identities)
        if "protect" in self.stages.wanted and not self.attack.needs_surrogate:  # in no time
            known = {identity.name: identity for identity, _ in identities}
            for_all(lambda name: self._protect(known[name]), self.identities)
        return identities

    def _identity(self, identity: Identity, scores: Scores) -> Path | None:
        config, stages = self.config, self.stages
        protected = self._protect(identity)
        if stages.wanted == {"protect"}:
            say(f"protected photos of {identity.name}: {protected.path}")
            return None
        arms = {
            "unprotected": identity.set_B,
            "protected": read_back(identity.set_B, protected.path),
        }
        mixed = (identity.set_C, config["clean_photos"])
        arms = {arm: with_clean_photos(photo_set, *mixed) for arm, photo_set in arms.items()}
        counter = (self.countermeasure, self.choices["countermeasure"])
        counter += (without(config["countermeasure"], "model"), self.purifiers.get(PURIFIER))
        counter += (config["precision"],)
        arms = {
            arm: stages.countermeasure(identity.name, arm, photo_set, *counter)
            for arm, photo_set in arms.items()
        }
        asked = config["customizer"]
        class_images = None
        if self.customizer.training.preserves_prior:
            class_images = self._class_images(
                self.base_model, asked["base_model"], asked, "customize"
            )
        tuning = without(config["customizer"], "base_model")
        victims = {
            arm: stages.customize(
                identity.name,
                arm,
                photo_set,
                self.customizer,
                self.choices["customizer"],
                tuning,
                self.base_model,
                class_images,
            )
            for arm, photo_set in arms.items()
        }
        galleries = {arm: self._gallery(identity.name, arm, victims[arm]) for arm in ARMS}
        strangers = self._gallery(self.base_model.name, "strangers", None)
        if "eval" not in stages.wanted:
            for arm in ARMS:
                say(f"gallery of the {arm} victim of {identity.name}: {galleries[arm].path}")
            return None
        outcome = Outcome(identity, protected, arms["protected"], victims, galleries, strangers)
        facts = self._facts(identity)
        return publish(outcome, scores, facts, self.choices, self.output_dir, self.tracker)

    def _protect(self, identity: Identity) -> Artifact:
        return self.stages.protect(
            identity,
            self.attack,
            self.choices["attack"],
            self.config["attack"],
            list(self.surrogates.values()),
            self._class_images_of_surrogate,
            self.purifiers.get(OWN_PURIFIER),
        )

    def _facts(self, identity: Identity) -> dict:
        """Return what of a record is known before any score, in the record's order."""
        config, uses_loss = self.config, self.attack.needs_surrogate
        return {
            "dataset": self.choices["dataset"],
            "identity": identity.name,
            "attack": self.choices["attack"],
            "eps": self.attack.eps,
            "loss": self.choices["loss"] if uses_loss else "none",
            "timestep_policy": self.choices["timestep_policy"] if uses_loss else "none",
            "surrogate_model": self.choices["surrogate_model"],
            "base_model": self.base_model.name,
            "countermeasure": self.choices["countermeasure"],
            "clean_photos": config["clean_photos"],
            "adversary": self.choices["adversary"],
            "customizer": self.choices["customizer"],
            "seed": config["seed"],
            "photos": len(identity.set_B.names),
            "config": config,
            "digests": {
                **{name: model.digest for name, model in self.surrogates.items()},
                "base_model": self.base_model.digest,
                **{DIGESTS[key]: model.digest for key, model in self.purifiers.items()},
            },
        }

    def _class_images_of_surrogate(self, k: int) -> Artifact:
        attack, (key, model) = self.config["attack"], list(self.surrogates.items())[k]
        node = attack["others"][key.rpartition(".")[2]] if k else self.config["surrogate_model"]
        return self._class_images(model, node, attack, "protect")

    def _class_images(self, model: Model, node: Mapping, asked: Mapping, needed_by: str):
        settings = drawing(node) | without(self.config["class_images"], "_target_")
        return self.stages.class_images(
            model, asked["class_prompt"], settings, self.config["precision"], needed_by
        )

    def _gallery(self, unit: str, arm: str, victim: Artifact | None) -> Artifact:
        return self.stages.gallery(
            unit,
            arm,
            victim,
            self.customizer,
            self.base_model,
            self.config["gallery"],
            self.config["precision"],
        )


def for_all(read: Callable[[str], Any], names: Sequence[str]) -> list:
    """Return what `read` returns for each name; raise Refused for all that it refuses."""
    found, refused = [], {}
    for name in names:
        try:
            found.append(read(name))
        except StoreError:
            raise
        except (ValueError, OSError) as error:
            refused.setdefault(str(error), []).append(name)
    if refused:
        raise Refused("; ".join(f"{', '.join(who)}: {why}" for why, who in refused.items()))
    return found
