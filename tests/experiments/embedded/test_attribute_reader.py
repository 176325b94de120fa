"""What the attribute reader is told, and that it learns it."""

import dataclasses

import pytest
import torch

from anticustom.portraits import person, render, shot
from experiments.embedded import attribute_reader
from experiments.embedded.attribute_reader import (
    VALUES,
    attributes,
    labelled_portraits,
    trained_reader,
)


def test_attributes_are_what_the_renderer_was_told():
    who, when = person(3), shot(3, 0, scene="beach")
    who = dataclasses.replace(
        who, hat="none", hair_style="long", hair_colour="red", beard="full", glasses="round"
    )
    read = {"hair": "red", "beard": "full", "glasses": "yes", "hat": "no", "scene": "beach"}
    assert attributes(who, when) == read
    hatted = dataclasses.replace(who, hat="cap", glasses="none")
    read |= {"hair": "hidden", "glasses": "no", "hat": "yes"}
    assert attributes(hatted, when) == read


def test_labels_belong_to_their_portraits():
    numbers = range(1_500_000, 1_500_003)
    images, labels = labelled_portraits(numbers)
    assert images.shape == (3, 3, attribute_reader.SIZE, attribute_reader.SIZE)
    for k, number in enumerate(numbers):
        value = VALUES["beard"][labels["beard"][k]]
        assert value == person(number).beard


def test_reader_learns_and_is_kept(tmp_path):
    file = tmp_path / "reader.pt"
    reader = trained_reader(file, portraits=640, epochs=6)
    numbers = range(60)
    scenes = ["studio", "beach"]
    shots = [shot(k, 0, scene=scenes[k % 2]) for k in numbers]
    images = render([person(k) for k in numbers], shots, 96)
    rows = reader.read(images)
    beach = [row["scene"] == "beach" for row in rows]
    right = sum(found == bool(k % 2) for k, found in enumerate(beach))
    assert right >= 54
    again = trained_reader(file)
    assert again.read(images) == rows
    assert not again.training


@pytest.mark.parametrize("name", VALUES)
def test_every_attribute_is_read(name):
    logits = attribute_reader.AttributeReader()(torch.rand(2, 3, 64, 64))
    assert logits[name].shape == (2, len(VALUES[name]))
