"""The results of a run for an identity: its record, its picture, its tracked run."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from anticustom.identities import Identity, PhotoSet
from experiments.records.files import read, write
from experiments.records.naming import attack_parts, row_of, with_contents, without
from experiments.records.record import SCHEMA_VERSION, ArmScores, Record, record_of
from experiments.run.overview import Row, draw_overview
from experiments.run.photo_files import photo_files
from experiments.run.scores import Scores
from experiments.run.stages import VERSIONS
from experiments.run.table import setting
from experiments.run.tracking import Tracker
from experiments.setup.presets import row_names
from experiments.store.artifacts import Artifact, digest_of, safe_name
from experiments.store.provenance import computed_on, highest, versions
from experiments.terminal import say

ARMS = ("unprotected", "protected")


@dataclass(frozen=True)
class Outcome:
    """The artifacts of one identity; `victims` and `galleries` by arm.

    `trained_on` are the photos that the protected victim was trained on: the protected ones, after
    a counter-measure, with clean ones among them.
    """

    identity: Identity
    protected: Artifact
    trained_on: PhotoSet
    victims: Mapping[str, Artifact]
    galleries: Mapping[str, Artifact]
    strangers: Artifact

    @property
    def machine(self) -> dict:
        """The machine that protected the photos, which need not be the one that scores now."""
        return self.protected.manifest["facts"]["machine"]

    @property
    def processors(self) -> dict[str, str]:
        """The processors that protected the photos and made victim and gallery of each arm."""
        arms = {arm: _processors(self.victims[arm], self.galleries[arm]) for arm in ARMS}
        return {"protect": _processors(self.protected), **arms}

    @property
    def made_with(self) -> dict[str, dict]:
        """The versions that made an artifact, where they are not those of this process."""
        artifacts = {
            "protect": self.protected,
            **{f"{arm} victim": self.victims[arm] for arm in ARMS},
            **{f"{arm} gallery": self.galleries[arm] for arm in ARMS},
        }
        made = {name: artifact.manifest["versions"] for name, artifact in artifacts.items()}
        return {name: numbers for name, numbers in made.items() if numbers != versions()}

    @property
    def peak_memory_bytes(self) -> dict:
        """Peak memory over all artifacts, including those that other processes computed."""
        models = [*self.victims.values(), *self.galleries.values()]
        artifacts = [self.protected, *models, self.strangers]
        return highest(artifact.manifest["facts"]["peak_memory_bytes"] for artifact in artifacts)

    @property
    def protected_files(self) -> list[Path]:
        return photo_files(self.protected.path, self.identity.set_B)


def _processors(*artifacts: Artifact) -> str:
    machines = [artifact.manifest["facts"].get("machine") for artifact in artifacts]
    names = dict.fromkeys(computed_on(machine) for machine in machines if machine)
    return " / ".join(names) or "unknown"


def publish(
    outcome: Outcome,
    scores: Scores,
    facts: Mapping,
    choices: Mapping[str, str],
    output_dir: Path,
    tracker: Tracker,
) -> Path:
    """Write record and overview unless they are there, and track them; return the record's path.

    `facts` are the record's fields that are known before scoring, `choices` the run's options.
    """
    identity = outcome.identity
    digests = {
        **facts["digests"],
        "photos": {letter: getattr(identity, f"set_{letter}").digest for letter in "ABC"},
        "protected": outcome.protected.digest,
        "scorer": scores.digests,
        **{f"gallery_{arm}": outcome.galleries[arm].digest for arm in ARMS},
    }
    facts = with_name(facts, digests)
    path = output_dir / "records" / f"{facts['name']}.json"
    anew = "eval" in facts["config"]["force"]
    if anew or not path.exists():
        default_precision = "mixed" if outcome.machine["gpu"] else "float32"
        method, details = row_names(facts["config"], choices, default_precision)
        entries = {**_origin(outcome, choices), **facts, **_results(outcome, scores)}
        record = record_of({**entries, "method": method, "details": details}, str(path))
        write(record, path.parent)
    record = read(path)
    overview = output_dir / "overviews" / facts["name"] / "overview.png"
    if anew or not overview.exists():
        _draw(overview, record, outcome, scores)
    where = tracker.track(record, {"overview": overview}, output_dir)
    say(f"overview: {overview}" + (f"   tracked: {where}" if where else ""))
    return path


def with_name(facts: Mapping, digests: Mapping) -> dict:
    """Return the facts of a record with its digests, its row, and the name of its file.

    The name tells a record from all others, by its place on the leaderboard and its photos.
    """
    facts = {**facts, "digests": digests, "row": row_of(facts["config"], digests, VERSIONS)}
    attack = with_contents(attack_parts(facts["config"]), facts["identity"])
    place = without(facts, "config", "loss", "timestep_policy", "photos", "attack")
    digest = digest_of("record", SCHEMA_VERSION, {**place, "attack": attack})
    names = [facts[name] for name in ("dataset", "identity", "attack", "customizer")]
    return {**facts, "name": safe_name("_".join([*names, digest]))}


def command_of(hydra: DictConfig) -> str:
    """Return the command that runs this job alone, whatever launcher started it in what sweep."""
    # an experiment's name among the words would make a sweep of it again
    alone = ["hydra.mode=RUN"] if hydra.runtime.choices.get("experiment") else []
    return shlex.join(["python", "run.py", *hydra.overrides.task, *alone])


def _origin(outcome: Outcome, choices: Mapping[str, str]) -> dict:
    return {
        "schema_version": SCHEMA_VERSION,
        "command": command_of(HydraConfig.get()),
        "experiment": choices.get("experiment"),
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "stages": VERSIONS,
        "made_with": outcome.made_with,
        "machine": outcome.machine,
        "processors": outcome.processors,
    }


def _results(outcome: Outcome, scores: Scores) -> dict:
    arms = {arm: scores.gallery(f"the {arm} gallery", outcome.galleries[arm]) for arm in ARMS}
    retention = scores.retention(outcome.strangers)
    for scored in arms.values():
        scored["identity_retention"] = retention(scored)
    customized = (outcome.victims["protected"], outcome.galleries["protected"])
    return {
        "seconds": {
            "protect": outcome.protected.manifest["facts"]["seconds"],
            "customize": sum(artifact.manifest["facts"]["seconds"] for artifact in customized),
            "evaluate": scores.seconds,
        },
        "peak_memory_bytes": outcome.peak_memory_bytes,
        "scorer": scores.metrics,
        "scores": arms,
        "perceptibility": scores.perceptibility(outcome.protected, outcome.protected_files),
    }


def _draw(path: Path, record: Record, outcome: Outcome, scores: Scores) -> None:
    visible = record.perceptibility
    psnr = "" if visible.psnr is None else f", PSNR {visible.psnr:.1f} dB"
    attack = f"{record.attack} at eps {record.eps:g}"
    path.parent.mkdir(parents=True, exist_ok=True)
    draw_overview(
        path,
        title=f"{attack} on {record.dataset} {record.identity}{setting(record)}",
        subtitle=f"{record.customizer} of {record.base_model}, seed {record.seed}",
        photos=Row("Photos", scores.photos["B"]),
        protected=Row(
            "Protected", outcome.protected_files, f"largest change {visible.linf:g} of 255{psnr}"
        ),
        galleries=[
            Row(
                f"{arm} victim".capitalize(),
                outcome.galleries[arm].files,
                _score_lines(getattr(record.scores, arm)),
            )
            for arm in ARMS
        ],
        prompts=record.config["gallery"]["prompts"],
        trained_on=_trained_on(record, outcome),
    )


def _trained_on(record: Record, outcome: Outcome) -> Row | None:
    """Return the adversary's training photos, unless they are the protected photos themselves."""
    words = [f"{record.clean_photos} clean"] if record.clean_photos else []
    words += [f"after {record.countermeasure}"] if record.countermeasure != "none" else []
    return Row("Trained on", outcome.trained_on.images, ", ".join(words)) if words else None


def _score_lines(scores: ArmScores) -> str:
    ism = "-" if scores.ism is None else f"{scores.ism:.2f}"
    lines = [f"ISM {ism}, failures as 0 {scores.ism_failures_as_0:.2f}", f"FDFR {scores.fdfr:.0%}"]
    if scores.identity_retention is not None:
        lines.append(f"identity retention {scores.identity_retention:.2f}")
    return "\n".join(lines)
