from dataclasses import replace

import pytest
import torch
from helpers import Reports

from anticustom.chunks import Chunks
from anticustom.losses import FeatureInterference, Objective


class Small:
    """A memory that holds `most` rows and notes the sizes of its chunks."""

    def __init__(self, most: int):
        self.most, self.sizes = most, []

    def __call__(self, rows: slice) -> list[int]:
        self.sizes.append(rows.stop - rows.start)
        if self.sizes[-1] > self.most:
            raise torch.OutOfMemoryError
        return list(range(rows.start, rows.stop))


@pytest.mark.parametrize(
    ("most", "sizes"), [(7, [7]), (3, [7, 3, 3, 1]), (2, [7, 3, 1, 1, 1, 1, 1, 1, 1])]
)
def test_rows_come_in_order_as_many_at_once_as_fit(most, sizes):
    chunks, small = Chunks(), Small(most)
    assert [row for run in chunks(small, 7) for row in run] == list(range(7))
    assert small.sizes == sizes
    again = Small(most)
    chunks(again, 7)
    assert max(again.sizes) <= most  # the chunks remember


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
    words = [f"attack={attack}", "attack.steps=2", "timestep_policy=uniform"]
    if attack == "simac":
        schedule = "attack.surrogate_schedule"
        words += [f"{schedule}.iterations=2", f"{schedule}.training_steps=1"]
    whole = configured("attack", *words)
    whole = replace(whole, loss=FeatureInterference(reference="phase_start"))
    cramped = replace(whole, loss=Cramped(reference="phase_start"))
    reports = Reports()
    alone, together = cramped(inputs_for(cramped, progress=reports)), whole(inputs_for(whole))
    # the convolutions of one image and of two round differently, and a sign may turn
    assert (alone - together).abs().mean() < 0.05 / 255
    steps = reports.of("perturbation")
    assert steps[-1] == whole.surrogate_schedule.iterations * whole.steps
    assert steps == sorted(steps)
