"""The scores of one identity: galleries against its clean set A, cached by content."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
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


@dataclass
class Scores:
    """Scorer of the galleries of an identity; `seconds` adds up the time that the scoring took."""

    stages: Stages
    scorer: Any
    metrics: Mapping
    identity: Identity
    photos: dict[str, list[Path]]
    seconds: float = 0.0

    @cached_property
    def digests(self) -> dict[str, str]:
        """The digests of the scorer's weights, by their files' names."""
        return {file.name: digest_of_file(file) for file in self.scorer.weights}

    def check_reference(self) -> None:
        """Raise ValueError if no face is found in the clean set A."""
        self._similarity("A", "the reference photos")

    def gallery(self, what: str, gallery: Artifact) -> dict:
        """Return the scores of a gallery, of each prompt, and the rows of its images."""
        prompts = gallery.manifest["facts"]["prompts"]
        files = {prompt: [gallery.path / name for name in prompts[prompt]] for prompt in prompts}
        measure = partial(self.scorer, files, self.photos["A"])
        rows = self._stored("gallery", what, gallery.digest, measure)
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
        person = failures_as_0(self._similarity("C", "the held-out photos"))
        return lambda scores: identity_retention(scores["ism_failures_as_0"], nobody, person)

    def perceptibility(self, protected: Artifact, files: list[Path]) -> dict:
        """Return how visible the protection is, measured on the saved files."""
        further = self.scorer.comparing
        measure = partial(perceptibility, self.photos["B"], files, further=further)
        what = "how visible the protection is"
        return self._stored("perceptibility", what, protected.digest, measure)

    def _similarity(self, letter: str, what: str) -> list[float | None]:
        """Return the similarity of each photo of a set to the clean set A."""
        digest = getattr(self.identity, f"set_{letter}").digest
        photos, reference = self.photos[letter], self.photos["A"]
        measure = partial(self.scorer.similarity_of, photos, reference)
        return self._stored("similarity", what, digest, measure)

    def _stored(self, kind: str, what: str, digest: str, measure: Callable[[], Any]) -> Any:
        reference = {k: getattr(self.identity, f"set_{k}").digest for k in "AB"}
        inputs = {
            "score": kind,
            "images": digest,
            "reference": reference,
            "metrics": decisive(self.metrics),
            "weights": self.digests,
        }

        def build(folder: Path, checkpoint: TimedCheckpoint) -> Mapping:
            (folder / "scores.json").write_text(json.dumps(measure()))
            return {}

        name, what = self.identity.name, f"{self.identity.name}: scoring {what}"
        artifact = self.stages.make("eval", name, inputs, build, part_of="eval", what=what)
        self.seconds += artifact.manifest["facts"]["seconds"]
        return json.loads((artifact.path / "scores.json").read_text())
