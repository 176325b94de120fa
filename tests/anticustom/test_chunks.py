from dataclasses import replace

import pytest
import torch

from anticustom.chunks import Chunks
from anticustom.losses import FeatureInterference, Objective


class Small:
    """A memory that holds `most` rows; notes what was asked of it."""

    def __init__(self, most: int):
        self.most, self.asked = most, []

    def __call__(self, rows: slice) -> list[int]:
        self.asked.append(rows.stop - rows.start)
        if self.asked[-1] > self.most:
            raise torch.OutOfMemoryError
        return list(range(rows.start, rows.stop))


@pytest.mark.parametrize(
    ("most", "asked"), [(7, [7]), (3, [7, 3, 3, 1]), (2, [7, 3, 1, 1, 1, 1, 1, 1, 1])]
)
def test_rows_come_in_order_as_many_at_once_as_fit(most, asked):
    chunks, small = Chunks(), Small(most)
    assert [row for run in chunks(small, 7) for row in run] == list(range(7))
    assert small.asked == asked
    again = Small(most)
    chunks(again, 7)
    assert max(again.asked) <= most  # it remembers


def test_a_row_that_does_not_fit_is_an_error():
    with pytest.raises(torch.OutOfMemoryError):
        Chunks()(Small(0), 4)


def test_other_errors_are_not_taken_for_a_full_memory():
    def wrong(rows: slice) -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        Chunks()(wrong, 4)


class Cramped(FeatureInterference):
    """SimAC's loss with memory for one image."""

    def bind(self, model, **references) -> Objective:
        whole = super().bind(model, **references)

        def terms(posterior, draw):
            if len(posterior.mean) > 1:
                raise torch.OutOfMemoryError
            return whole.of_posterior(posterior, draw)

        return replace(whole, of_posterior=terms)


@pytest.mark.parametrize("attack", ["simac", "advdm"])
def test_photos_one_at_a_time_are_protected_as_all_at_once(attack, configured, inputs_for):
    words = [f"attack={attack}", "attack.steps=4", "timestep_policy=uniform"]
    if attack == "simac":
        words.append("attack.surrogate_schedule.iterations=2")
    whole = configured("attack", *words)
    whole = replace(whole, loss=FeatureInterference(reference="phase_start"))
    cramped = replace(whole, loss=Cramped(reference="phase_start"))
    steps = []
    inputs = inputs_for(cramped, progress=lambda what, done, *rest: steps.append((what, done)))
    alone, together = cramped(inputs), whole(inputs_for(whole))
    # the convolutions of one image and of two round differently, and a sign may turn
    assert (alone - together).abs().mean() < 0.05 / 255
    done = [done for what, done in steps if what == "perturbation"]
    assert done[-1] == whole.surrogate_schedule.iterations * whole.steps
    assert done == sorted(done)
