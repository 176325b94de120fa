"""Labels of the attribute reader, and that it learns them."""

import dataclasses

import pytest
import torch

from anticustom.portraits import person, render, shot
from experiments.embedded.attribute_reader import (
    SIZE,
    VALUES,
    AttributeReader,
    attributes,
    labelled_portraits,
    trained_reader,
)


def test_attributes_are_those_that_the_renderer_draws():
    bare = {"hat": "none", "hair_style": "long", "hair_colour": "red", "beard": "full"}
    who, when = dataclasses.replace(person(3), **bare, glasses="round"), shot(3, 0, scene="beach")
    labels = {"hair": "red", "beard": "full", "glasses": "yes", "hat": "no", "scene": "beach"}
    assert attributes(who, when) == labels
    labels |= {"hair": "hidden", "glasses": "no", "hat": "yes"}
    assert attributes(dataclasses.replace(who, hat="cap", glasses="none"), when) == labels


def test_labels_belong_to_their_portraits():
    numbers = range(1_500_000, 1_500_003)
    images, labels = labelled_portraits(numbers)
    assert images.shape == (3, 3, SIZE, SIZE)
    beards = [VALUES["beard"][k] for k in labels["beard"]]
    assert beards == [person(number).beard for number in numbers]


def test_every_attribute_is_read():
    logits = AttributeReader()(torch.rand(2, 3, SIZE, SIZE))
    shapes = {name: (2, len(values)) for name, values in VALUES.items()}
    assert {name: tuple(values.shape) for name, values in logits.items()} == shapes


@pytest.mark.slow
def test_reader_learns_and_is_kept(tmp_path):
    reader = trained_reader(tmp_path / "reader.pt", portraits=640, epochs=6)
    scenes = ["studio", "beach"] * 30
    shots = [shot(k, 0, scene=scene) for k, scene in enumerate(scenes)]
    images = render([person(k) for k in range(60)], shots, 96)
    rows = reader.read(images)
    on_beach = zip([row["scene"] == "beach" for row in rows], [False, True] * 30, strict=True)
    assert sum(read == drawn for read, drawn in on_beach) >= 54
    kept = trained_reader(tmp_path / "reader.pt")
    assert kept.read(images) == rows
    assert not kept.training
