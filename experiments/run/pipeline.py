"""The pipeline protect -> customize -> eval of one job, over all its identities."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from anticustom.identities import Identity, with_clean_photos
from experiments.records.files import read
from experiments.run.dry_step import check_memory
from experiments.run.outcome import ARMS, Outcome, publish
from experiments.run.scores import Scores
from experiments.run.stages import StageMissing, Stages
from experiments.run.table import print_table
from experiments.run.tracking import Tracker, filled_in
from experiments.setup.building import Refused, build
from experiments.setup.fitting import ATTACK_PURIFIER, PURIFIER
from experiments.setup.job import Job
from experiments.setup.settings import PARTS
from experiments.store.artifacts import Store
from experiments.store.disk import StoreError, check_writable
from experiments.terminal import say

# artifacts that the jobs of a sweep in this process made anew: no job makes a shared one again
RENEWED: set[Path] = set()


class SomeFailed(ValueError):
    """Some of several identities failed; `paths` are the records of the others."""

    def __init__(self, failed: Mapping[str, str], count: int, paths: list[Path]):
        reasons = "; ".join(f"{name}: {error}" for name, error in failed.items())
        super().__init__(f"{len(failed)} of {count} failed: {reasons}")
        self.paths = paths


def run(job: Job) -> list[Path]:
    """Run all identities of a job, one after the other; return the paths of their records.

    Photos that cannot be used are refused before the first identity, and so is work that does not
    fit the memory of a GPU. The failure of one of several identities is raised after the others,
    as SomeFailed.
    """
    tracker = tracker_of(job)
    check_writable(job.output_dir)
    if not job.names:
        shard, count = job.config["dataset"]["shard"], len(job.dataset.names())
        say(f"dataset.shard={shard} of {count} identities holds none: there is nothing to do")
        return []
    stages = stages_of(job)
    people = _read_all(stages)
    if job.device.startswith("cuda"):
        check_memory(stages, people[0][0])
    paths, failed = [], {}
    for identity, scores in people:
        try:
            path = run_identity(stages, identity, scores, tracker)
        except (StoreError, StageMissing):
            raise
        except (ValueError, FloatingPointError) as error:
            if len(people) == 1:
                raise
            failed[identity.name] = str(error)  # the error itself would hold the models
            say(f"error: {identity.name}: {error}; going on with the others")
        else:
            paths += [path] if path else []
    if paths:
        print_table([read(path) for path in paths])
        say(str(paths[-1]))
    if failed:
        raise SomeFailed(failed, len(people), paths)
    return paths


def stages_of(job: Job) -> Stages:
    """Return the stages of a job, on the store in its output_dir."""
    forced = {part for stage in job.config["force"] for part in PARTS[stage]}
    return Stages(job, Store(job.output_dir / "store", forced, RENEWED), set(job.config["stages"]))


def tracker_of(job: Job) -> Tracker:
    """Return the tracker of a job, with the settings that follow from the run."""
    settings, dataset = job.config["tracker"], job.config["dataset"]["_target_"]
    experiment = job.choices.get("experiment")
    return build(filled_in(OmegaConf.create(settings), dataset, experiment))


def _read_all(stages: Stages) -> list[tuple[Identity, Scores]]:
    """Return the identities of a job, each with the scorer of its galleries.

    Raises Refused, with all names, for photos that cannot be used, and for photos that somebody
    else protected but that cannot be those of the identity.
    """
    job = stages.job

    def read_identity(name: str) -> tuple[Identity, Scores]:
        identity = job.dataset.read(name, job.size)
        with_clean_photos(identity.set_B, identity.set_C, job.config["clean_photos"])
        photos = stages.photos(identity)
        scores = Scores(stages, job.scorer, job.config["metrics"], identity, photos)
        if stages.wanted > {"eval"}:
            scores.check_reference()
        return identity, scores

    people = _for_all(read_identity, job.names)
    if "protect" in stages.wanted and not job.attack.needs_surrogate:  # which takes no time
        identities = {identity.name: identity for identity, _ in people}
        _for_all(lambda name: stages.protect(identities[name]), job.names)
    return people


def _for_all(read: Callable[[str], Any], names: Sequence[str]) -> list:
    """Return the results of `read` for each name; raise Refused with all its refusals."""
    results, refused = [], {}
    for name in names:
        try:
            results.append(read(name))
        except StoreError:
            raise
        except (ValueError, OSError) as error:
            refused.setdefault(str(error), []).append(name)
    if refused:
        raise Refused("; ".join(f"{', '.join(who)}: {why}" for why, who in refused.items()))
    return results


def run_identity(
    stages: Stages, identity: Identity, scores: Scores, tracker: Tracker
) -> Path | None:
    """Run the wanted stages of one identity; return the path of its record, None without eval."""
    job = stages.job
    protected = stages.protect(identity)
    if stages.wanted == {"protect"}:
        say(f"protected photos of {identity.name}: {protected.path}")
        return None
    photos = stages.training_photos(identity, protected)
    victims = {arm: stages.customize(identity.name, arm, photos[arm]) for arm in ARMS}
    galleries = {arm: stages.gallery(identity.name, arm, victims[arm]) for arm in ARMS}
    strangers = stages.gallery(job.base_model.name, "strangers", None)
    if "eval" not in stages.wanted:
        for arm in ARMS:
            say(f"gallery of the {arm} victim of {identity.name}: {galleries[arm].path}")
        return None
    outcome = Outcome(identity, protected, photos["protected"], victims, galleries, strangers)
    facts = facts_of(job, identity)
    return publish(outcome, scores, facts, job.choices, job.output_dir, tracker)


def facts_of(job: Job, identity: Identity) -> dict:
    """Return the record's fields that are known before scoring, in the record's order."""
    config, choices, uses_loss = job.config, job.choices, job.attack.needs_surrogate
    digests = {key: model.digest for key, model in job.surrogates.items()}
    digests["base_model"] = job.base_model.digest
    for name, key in {"purifier": PURIFIER, ATTACK_PURIFIER: ATTACK_PURIFIER}.items():
        digests |= {name: job.models[key].digest} if key in job.models else {}
    return {
        "dataset": choices["dataset"],
        "identity": identity.name,
        "attack": choices["attack"],
        "eps": job.attack.eps,
        "loss": choices["loss"] if uses_loss else "none",
        "timestep_policy": choices["timestep_policy"] if uses_loss else "none",
        "surrogate_model": choices["surrogate_model"],
        "base_model": job.base_model.name,
        "countermeasure": choices["countermeasure"],
        "clean_photos": config["clean_photos"],
        "adversary": choices["adversary"],
        "customizer": choices["customizer"],
        "seed": config["seed"],
        "photos": len(identity.set_B.names),
        "config": config,
        "digests": digests,
    }
