import itertools
import math

import pytest
import torch

from eval.face_quality import MASKS, generator_for, scaled, ser_fiq_raw
from eval.image_files import read_image


def test_raw_score_is_the_definition(sface):
    crop = torch.rand(1, 3, 112, 112, generator=torch.Generator().manual_seed(3))
    features = sface.features(crop)
    generator = torch.Generator().manual_seed(7)
    masks = torch.rand(MASKS, features.shape[1], generator=generator) >= 0.4
    embeddings = [sface.embed(features * mask / 0.6)[0].double() for mask in masks]
    embeddings = [e / e.norm() for e in embeddings]
    distances = [(a - b).norm().item() for a, b in itertools.combinations(embeddings, 2)]
    expected = 2 / (1 + math.exp(sum(distances) / len(distances)))

    score = ser_fiq_raw(features, sface, torch.Generator().manual_seed(7))
    assert score == pytest.approx(expected, abs=1e-5)


def test_masks_are_keyed_by_the_file_name(sface):
    features = sface.features(torch.full((1, 3, 112, 112), 0.5))
    first = ser_fiq_raw(features, sface, generator_for("a.png"))
    assert first == ser_fiq_raw(features, sface, generator_for("a.png"))
    assert first != ser_fiq_raw(features, sface, generator_for("b.png"))


def test_a_photo_scores_high_and_what_is_no_face_low(reader, people):
    sface = reader.recognizer
    photo = read_image(sorted((people[0] / "set_A").iterdir())[0])
    good = ser_fiq_raw(sface.features(reader(photo).crop[None]), sface, generator_for("photo"))
    corner = ser_fiq_raw(
        sface.features(photo[None, :, -112:, -112:]), sface, generator_for("corner")
    )
    assert scaled(good, "sface") > 0.8
    assert scaled(corner, "sface") < 0.25


def test_scaling_is_monotonic_and_centred():
    assert scaled(0.88, "sface") == 0.5
    scores = [scaled(raw, "sface") for raw in (0.5, 0.8, 0.88, 0.91, 1.0)]
    assert scores == sorted(scores)
    assert 0 < scores[0] < scores[-1] < 1
