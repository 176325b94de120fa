"""The pipeline protect -> customize -> eval: the one place that instantiates a configuration."""

import os
import shlex
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from anticustom.diffusion import image_size
from anticustom.identities import Identity, PhotoSet
from anticustom.images import output_names, read_png
from experiments import records
from experiments.disk import check_writable
from experiments.models import Model
from experiments.overview import Row, draw_overview
from experiments.provenance import machine, peak_memory_bytes, versions
from experiments.scores import Scores
from experiments.settings import Refused, check_settings
from experiments.stages import PARTS, Stages
from experiments.store import Artifact, Store, key_of, safe_name
from experiments.tables import print_table
from experiments.terminal import say

ARMS = ("unprotected", "protected")


def run(config: DictConfig) -> list[Path]:
    """Run the stages of a composed configuration; return the records' paths, one per identity.

    What cannot run is refused in one line before work starts: then, and when a run must stop, the
    process exits with 1. HYDRA_FULL_ERROR=1 shows the whole traceback.
    """
    try:
        return Pipeline(config, dict(HydraConfig.get().runtime.choices)).run()
    except (ValueError, OSError, FloatingPointError) as error:
        if os.environ.get("HYDRA_FULL_ERROR"):
            raise
        sys.exit(f"error: {' '.join(str(error).split())}")


class Pipeline:
    """One configuration with everything that it names, checked."""

    def __init__(self, config: DictConfig, choices: Mapping[str, str]):
        self.choices = choices
        if missing := OmegaConf.missing_keys(config):
            raise Refused(f"{', '.join(sorted(missing))}: set it, for it has no default")
        self.output_dir = Path(config.output_dir)
        self.device = chosen_device(config.device)
        if config.precision == "auto":
            config.precision = "mixed" if self.device.startswith("cuda") else "float32"
        self.config = OmegaConf.to_container(config, resolve=True)
        check_settings(self.config)
        self.dataset = build(config.dataset)
        self.attack = build(config.attack)
        self.customizer = build(without(self.config["customizer"], "base_model", "precision"))
        self.scorer = build(config.metrics, device=self.device)
        self.tracker = build(self._tracker(config))
        self.surrogate_model = model_of(config.surrogate_model)
        self.base_model = model_of(config.customizer.base_model)
        self._refuse_what_is_missing()
        self.identities = self.dataset.names()
        check_writable(self.output_dir)
        self.stages = Stages(
            Store(
                self.output_dir / "store",
                {part for stage in self.config["force"] for part in PARTS[stage]},
            ),
            set(self.config["stages"]),
            self.config["seed"],
            self.device,
            self.config["checkpoint_minutes"],
        )

    def _tracker(self, config: DictConfig) -> DictConfig:
        tracker = config.tracker.copy()
        if tracker.get("upload_images", False) is None:
            tracker.upload_images = self.choices["dataset"] != "folder"
        return tracker

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
        used = {
            "surrogate_model": self.attack.needs_surrogate and "protect" in self.config["stages"],
            "customizer.base_model": "customize" in self.config["stages"],
        }
        for key, is_used in used.items():
            node = OmegaConf.select(OmegaConf.create(self.config), key)
            if is_used and node.needs_gpu and self.device == "cpu" != self.config["device"]:
                raise Refused(
                    f"surrogate_model={node.name} needs a GPU, and torch finds none: run on a "
                    "machine with one, or take the embedded model with surrogate_model=tiny "
                    "(device=cpu tries regardless, for many hours)"
                )

    def run(self) -> list[Path]:
        size = self._photo_size()  # looks the models up: what is missing is missed before any work
        identities = [self.dataset.read(name, size) for name in self.identities]
        paths = [path for identity in identities if (path := self._identity(identity))]
        if paths:
            written = [records.read(path) for path in paths]
            print_table(written)
            say(str(paths[-1]))
        return paths

    def _photo_size(self) -> int:
        sizes = [image_size(model.folder) for model in (self.surrogate_model, self.base_model)]
        if sizes[0] != sizes[1]:
            raise Refused(
                f"surrogate_model is made for {sizes[0]} px and customizer.base_model for "
                f"{sizes[1]} px: photos are protected "
                "at the size that is customized, so choose two models of one size"
            )
        return sizes[0]

    def _identity(self, identity: Identity) -> Path | None:
        config, stages = self.config, self.stages
        photos = stages.photos(identity)
        protected = stages.protect(
            identity,
            self.attack,
            self.choices["attack"],
            config["attack"],
            self.surrogate_model,
            lambda: self._class_images(
                self.surrogate_model, "surrogate_model", config["attack"], "protect"
            ),
        )
        if stages.wanted == {"protect"}:
            say(f"protected photos of {identity.name}: {protected.path}")
            return None
        arms = {"unprotected": identity.set_B, "protected": read_back(identity.set_B, protected)}
        class_images = self._class_images(
            self.base_model, "customizer", config["customizer"], "customize"
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
        return self._record(identity, photos, protected, victims, galleries, strangers)

    def _class_images(self, model: Model, owner: str, asked: Mapping, needed_by: str) -> Artifact:
        node = self.config[owner]
        base = node["base_model"] if owner == "customizer" else node
        settings = {k: v for k, v in base["gallery"].items() if k != "images_per_prompt"}
        settings["count"] = self.config["class_images"]["count"]
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

    def _record(self, identity, photos, protected, victims, galleries, strangers) -> Path:
        digests = {"photos": {k: getattr(identity, f"set_{k}").digest for k in "ABC"}}
        digests |= {
            "surrogate_model": self.surrogate_model.digest,
            "base_model": self.base_model.digest,
        }
        digests |= {"protected": protected.digest}
        digests |= {f"gallery_{arm}": galleries[arm].digest for arm in ARMS}
        key = key_of(
            "record", records.SCHEMA_VERSION, {"digests": digests, "config": self._results_config()}
        )
        names = (
            self.choices["dataset"],
            identity.name,
            self.choices["attack"],
            self.choices["customizer"],
            key,
        )
        name = safe_name("_".join(names))
        path = self.output_dir / "records" / f"{name}.json"
        scores = Scores(self.stages, self.scorer, self.config["metrics"], identity, photos)
        anew = "eval" in self.config["force"]
        if anew or not path.exists():
            unprotected = scores.gallery("the unprotected gallery", galleries["unprotected"])
            both = {
                "unprotected": unprotected,
                "protected": scores.gallery("the protected gallery", galleries["protected"]),
            }
            retention = scores.retention(strangers)
            for arm in ARMS:
                both[arm]["identity_retention"] = retention(both[arm])
            records.write(
                {
                    **self._facts(identity),
                    "digests": digests,
                    "seconds": {
                        "protect": protected.manifest["facts"]["seconds"],
                        "customize": sum(
                            a.manifest["facts"]["seconds"]
                            for a in (victims["protected"], galleries["protected"])
                        ),
                        "evaluate": scores.seconds,
                    },
                    "peak_memory_bytes": peak_memory_bytes(),
                    "scores": both,
                    "perceptibility": scores.perceptibility(protected),
                },
                path.parent,
                name,
            )
        record = records.read(path)
        overview = self.output_dir / "overviews" / name / "overview.png"
        if anew or not overview.exists():
            overview.parent.mkdir(parents=True, exist_ok=True)
            self._draw(overview, record, photos["B"], protected, galleries)
        where = self.tracker.track(record, {"overview": overview}, self.output_dir, key)
        say(f"overview: {overview}" + (f"   tracked: {where}" if where else ""))
        return path

    def _results_config(self) -> dict:
        """Return what of the configuration decides the numbers: nothing of paths, devices and
        trackers.
        """
        groups = (
            "attack",
            "customizer",
            "gallery",
            "class_images",
            "metrics",
            "prompts",
            "seed",
            "precision",
        )
        return {name: self.config[name] for name in groups}

    def _facts(self, identity: Identity) -> dict:
        uses_loss = self.attack.needs_surrogate
        return {
            "schema_version": records.SCHEMA_VERSION,
            "dataset": self.choices["dataset"],
            "identity": identity.name,
            "attack": self.choices["attack"],
            "eps": self.attack.eps,
            "loss": self.choices["loss"] if uses_loss else "none",
            "timestep_policy": self.choices["timestep_policy"] if uses_loss else "none",
            "surrogate_model": self.choices["surrogate_model"],
            "customizer": self.choices["customizer"],
            "seed": self.config["seed"],
            "command": shlex.join(["python", *sys.argv]),
            "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": versions(),
            "machine": machine(),
            "config": self.config,
            "scorer": self.config["metrics"],
        }

    def _draw(
        self, path: Path, record: Mapping, clean: list[Path], protected: Artifact, galleries
    ) -> None:
        visible = record["perceptibility"]
        psnr = "" if visible["psnr"] is None else f", PSNR {visible['psnr']:.1f} dB"
        attack = f"{record['attack']} at eps {record['eps']:g}"
        draw_overview(
            path,
            title=f"{attack} on {record['dataset']} {record['identity']}",
            subtitle=f"{record['customizer']} of {self.base_model.name}, seed {record['seed']}",
            photos=Row("Photos", clean),
            protected=Row(
                "Protected", protected.files, f"largest change {visible['linf']} of 255{psnr}"
            ),
            galleries=[
                Row(
                    f"{arm} victim".capitalize(),
                    galleries[arm].files,
                    score_line(record["scores"][arm]),
                )
                for arm in ARMS
            ],
            prompts=self.config["gallery"]["prompts"],
        )


def score_line(scores: Mapping) -> str:
    ism = "-" if scores["ism"] is None else f"{scores['ism']:.2f}"
    lines = [
        f"ISM {ism}, failures as 0 {scores['ism_failures_as_0']:.2f}",
        f"FDFR {scores['fdfr']:.0%}",
    ]
    if scores.get("identity_retention") is not None:
        lines.append(f"identity retention {scores['identity_retention']:.2f}")
    return "\n".join(lines)


def build(node: DictConfig | Mapping, **arguments: Any) -> Any:
    """Instantiate a node of the configuration; what its constructor refuses is raised as it was
    meant.
    """
    try:
        return instantiate(node, _convert_="object", **arguments)
    except InstantiationException as error:
        if isinstance(error.__cause__, TypeError):
            raise Refused(f"{node['_target_']}: {error.__cause__}: check its settings") from error
        if isinstance(error.__cause__, ValueError | OSError):
            raise Refused(str(error.__cause__)) from error
        raise


def without(node: Mapping, *names: str) -> dict:
    return {key: value for key, value in node.items() if key not in names}


def model_of(node: Mapping) -> Model:
    return Model(node["name"], node["path"], node["revision"])


def read_back(clean: PhotoSet, protected: Artifact) -> PhotoSet:
    """Return the protected photos as their files hold them, in the order of the clean ones."""
    files = [protected.path / name for name in output_names(clean.names)]
    return PhotoSet(clean.names, torch.stack([read_png(file) for file in files]))


def chosen_device(asked: str) -> str:
    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=asked)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise Refused(
            f"device={asked}: torch cannot use it here ({reason}); try device=auto"
        ) from error
    return asked
