"""What long work shows of itself."""

import io
import sys
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from tqdm import tqdm

from experiments import terminal
from experiments.terminal import bars


@pytest.fixture
def work(monkeypatch):
    """Call it for 300 steps of a second each, the losses of which count down."""
    now = SimpleNamespace(seconds=0.0)
    clock = SimpleNamespace(monotonic=lambda: now.seconds)
    monkeypatch.setattr(terminal, "time", clock)

    def steps(with_loss: bool = True) -> None:
        with bars() as progress:
            for step in range(300):
                now.seconds += 1
                loss = torch.tensor(1 - step / 1000) if with_loss else None
                progress("perturbation", step + 1, 300, loss)

    return steps


@pytest.mark.parametrize(
    ("with_loss", "first"),
    [
        (True, "  perturbation 30 of 300, loss 0.971"),
        (False, "  perturbation 30 of 300"),
    ],
)
def test_without_a_terminal_a_line_comes_every_half_minute(work, capsys, with_loss, first):
    work(with_loss)
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert lines[0] == first
    assert len(lines) == 10
    assert captured.err == ""


def test_a_terminal_shows_a_bar_with_the_last_loss_and_clears_it(work, capsys, monkeypatch):
    stderr = io.StringIO()
    stderr.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", stderr)
    monkeypatch.setattr(terminal, "tqdm", partial(tqdm, mininterval=0, miniters=1))
    work()
    assert capsys.readouterr().out == ""
    assert "  perturbation: 100%" in stderr.getvalue()
    assert "loss 0.701" in stderr.getvalue()
    assert stderr.getvalue().endswith("\r")
