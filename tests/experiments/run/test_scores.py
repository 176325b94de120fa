"""Scores are kept by what decides them."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from runs import bare_job

from anticustom.identities import Identity, PhotoSet
from experiments.run.outcome import with_name
from experiments.run.scores import Scores
from experiments.run.stages import VERSIONS, Stages
from experiments.store.artifacts import Artifact, Store


@dataclass
class Counting:
    """A scorer whose weights are in a file; counts how often it is asked."""

    weights: list[Path]
    asked: int = 0

    def similarity_of(self, files, reference):
        self.asked += 1
        return [0.5]


@pytest.fixture
def scored(tmp_path):
    """Score the reference photos; return how often the scorer was asked, and its digests."""
    file = tmp_path / "net.safetensors"
    file.write_bytes(b"one")
    stages = Stages(bare_job({}), Store(tmp_path / "store"), {"eval"})
    photos = PhotoSet(("a.png",), torch.zeros(1, 3, 8, 8))
    identity = Identity("ann", photos, photos, photos)

    def score():
        scorer = Counting([file])
        scores = Scores(stages, scorer, {"backbone": "x"}, identity, {"A": [], "B": [], "C": []})
        scores.check_reference()
        return scorer.asked, scores.digests

    return file, score


def test_other_weights_of_a_scorer_score_again(scored):
    file, score = scored
    first, second = score(), score()
    assert (first[0], second[0]) == (1, 0)
    file.write_bytes(b"two, of another length")
    asked, digests = score()
    assert asked == 1
    assert digests.keys() == first[1].keys() == {"net.safetensors"}
    assert digests != first[1]


def test_a_record_is_another_where_its_scorer_or_the_scoring_is(finished, monkeypatch):
    record = finished.record
    assert set(record["digests"]["scorer"]) == {"sface.safetensors", "brisque_live.safetensors"}

    def key(**digests):
        return with_name(record, record["digests"] | digests)["name"]

    assert key() == key()
    assert key(scorer={"sface.safetensors": "other"}) != key()
    before = key()
    monkeypatch.setitem(VERSIONS, "eval", VERSIONS["eval"] + 1)
    assert key() != before


SIMILARITIES = {"A": 0.9, "B": 0.7, "C": 0.8, "victim": 0.4, "strangers": 0.2}


class ByName:
    """Scores files by the name of their folder, and keeps what they were compared with."""

    def __init__(self):
        self.weights, self.references = [], []

    def similarity_of(self, files, reference):
        self.references.append(reference)
        return [SIMILARITIES[file.parent.name] for file in files]

    def __call__(self, gallery, reference):
        found = {"face_found": True, "face_probability": 1.0, "ser_fiq": 0.5, "brisque": 40.0}
        return [
            {"prompt": prompt, "image": file.name, "similarity": similarity, **found}
            for prompt, files in gallery.items()
            for file, similarity in zip(files, self.similarity_of(files, reference), strict=True)
        ]


def test_retention_is_between_strangers_and_the_held_out_set_against_the_clean_set(tmp_path):
    stages = Stages(bare_job({}), Store(tmp_path / "store"), {"eval"})
    sets = [PhotoSet((f"{k}.png",), torch.full((1, 3, 8, 8), k / 255)) for k in range(3)]
    photos = {letter: [tmp_path / letter / "0.png"] for letter in "ABC"}
    scorer = ByName()
    scores = Scores(stages, scorer, {}, Identity("ann", *sets), photos)

    def gallery(name: str) -> Artifact:
        facts = {"prompts": {"a photo": ["0.png", "1.png"]}}
        return Artifact(tmp_path / name, {"facts": facts, "files": {"0.png": {"sha256": name}}})

    of_victim = scores.gallery("the gallery", gallery("victim"))
    retention = scores.retention(gallery("strangers"))
    assert retention(of_victim) == pytest.approx((0.4 - 0.2) / (0.8 - 0.2))
    assert scorer.references == [photos["A"]] * 3
