import pytest
import torch

from eval.identity import (
    failures_as_0,
    fdfr,
    identity_retention,
    over_detected,
    reference_embedding,
    similarity,
)


def test_the_reference_is_the_mean_of_raw_embeddings():
    reference = reference_embedding([torch.tensor([3.0, 0.0]), torch.tensor([0.0, 1.0])])
    assert reference.tolist() == [1.5, 0.5]
    # not the mean of directions, which would give 0.707
    assert similarity(torch.tensor([0.0, 2.0]), reference) == pytest.approx(0.5 / 2.5**0.5)


def test_similarity_is_a_cosine():
    a = torch.tensor([1.0, 2.0])
    assert similarity(a, 5 * a) == pytest.approx(1)
    assert similarity(a, -a) == pytest.approx(-1)
    assert similarity(a, torch.tensor([-2.0, 1.0])) == pytest.approx(0)


def test_failures():
    scores = [0.8, None, 0.4, None]
    assert over_detected(scores) == pytest.approx(0.6)
    assert failures_as_0(scores) == pytest.approx(0.3)
    assert fdfr(scores) == 0.5
    no_faces = [None, None]
    assert (over_detected(no_faces), failures_as_0(no_faces), fdfr(no_faces)) == (None, 0, 1)


def test_identity_retention():
    assert identity_retention(0.1, strangers=0.1, held_out=0.7) == 0
    assert identity_retention(0.7, strangers=0.1, held_out=0.7) == 1
    assert identity_retention(0.25, strangers=0.1, held_out=0.7) == pytest.approx(0.25)
    assert identity_retention(0.3, strangers=0.5, held_out=0.5) is None
