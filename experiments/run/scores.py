"""The scores of one identity: galleries against its clean set A, cached by content."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from anticustom.identities import Identity
from eval.gallery import summarize
from eval.identity import failures_as_0, identity_retention
from eval.perceptibility import perceptibility
from experiments.records.naming import decisive
from experiments.run.stages import Stages
from experiments.store.artifacts import Artifact
from experiments.store.checkpoints import TimedCheckpoint
from experiments.store.provenance import digest_of_file


class Scores:
    """Scores galleries of an identity with the configured scorer; `digests` are of its weights,
    `seconds` adds up what the scoring took.
    """

    def __init__(
        self,
        stages: Stages,
        scorer: Any,
        metrics: Mapping,
        identity: Identity,
        photos: dict[str, list[Path]],
    ):
        self.stages, self.scorer, self.metrics = stages, scorer, dict(metrics)
        self.identity, self.photos = identity, photos
        self.digests = {file.name: digest_of_file(file) for file in scorer.weights}
        self.seconds = 0.0

    def check_reference(self) -> None:
        """Raise ValueError if no face is found in the clean set A."""
        files = self.photos["A"]
        self._stored(
            "similarity",
            "the reference photos",
            self.identity.set_A.digest,
            lambda: self.scorer.similarity_of(files, files),
        )

    def gallery(self, what: str, gallery: Artifact) -> dict:
        """Return the scores of a gallery, of each prompt, and the rows of its images."""
        prompts = gallery.manifest["facts"]["prompts"]
        files = {
            prompt: [gallery.path / name for name in names] for prompt, names in prompts.items()
        }
        rows = self._stored(
            "gallery", what, gallery.digest, lambda: self.scorer(files, self.photos["A"])
        )
        summary = summarize(rows)
        table = [{"prompt": prompt, **scores} for prompt, scores in summary["prompts"].items()]
        off = {"brisque": None, "ser_fiq": None}  # what is switched off is missing in the summary
        return {**off, **summary, "prompts": table, "images": rows}

    def retention(self, strangers: Artifact) -> Callable[[Mapping], float | None]:
        """Return the function from a gallery's scores to its identity retention; None without a
        set C.
        """
        if not self.photos["C"]:
            return lambda scores: None
        nobody = self.gallery("strangers", strangers)["ism_failures_as_0"]
        held_out = self._stored(
            "similarity",
            "the held-out photos",
            self.identity.set_C.digest,
            lambda: self.scorer.similarity_of(self.photos["C"], self.photos["A"]),
        )
        person = failures_as_0(held_out)
        return lambda scores: identity_retention(scores["ism_failures_as_0"], nobody, person)

    def perceptibility(self, protected: Artifact, files: list[Path]) -> dict:
        """Return how visible the protection is, measured on the saved files."""
        return self._stored(
            "perceptibility",
            "how visible the protection is",
            protected.digest,
            lambda: perceptibility(self.photos["B"], files, further=self.scorer.comparing),
        )

    def _stored(self, kind: str, what: str, digest: str, measure: Callable[[], Any]) -> Any:
        reference = {k: getattr(self.identity, f"set_{k}").digest for k in "AB"}
        inputs = {"score": kind, "images": digest, "reference": reference}
        inputs |= {"metrics": decisive(self.metrics), "weights": self.digests}

        def build(folder: Path, checkpoint: TimedCheckpoint) -> Mapping:
            (folder / "scores.json").write_text(json.dumps(measure()))
            return {}

        artifact = self.stages.make(
            "eval",
            self.identity.name,
            inputs,
            build,
            part_of="eval",
            what=f"{self.identity.name}: scoring {what}",
        )
        self.seconds += artifact.manifest["facts"]["seconds"]
        return json.loads((artifact.path / "scores.json").read_text())
