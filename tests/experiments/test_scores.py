"""Scores are kept by what decides them."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from anticustom.identities import Identity, PhotoSet
from experiments.results import key_of_record
from experiments.scores import Scores
from experiments.stages import VERSIONS, Stages
from experiments.store import Store


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
    stages = Stages(Store(tmp_path / "store"), {"eval"}, 0, "cpu", 5)
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
        return key_of_record(record, record["digests"] | digests)

    assert key() == key()
    assert key(scorer={"sface.safetensors": "other"}) != key()
    before = key()
    monkeypatch.setitem(VERSIONS, "eval", VERSIONS["eval"] + 1)
    assert key() != before
