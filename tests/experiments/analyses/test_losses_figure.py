"""Traces of attacks, on a random model."""

import pandas as pd
import pytest
import torch
from runs import shifted

from anticustom import model_files
from anticustom.draws import SeededDraws
from anticustom.identities import PhotoSet, Portraits
from anticustom.progress import silent
from experiments.analyses.losses import Trace, fixed_loss, main, same_steps
from experiments.analyses.subjects import attacked, read_subject, subject_parser

pytestmark = pytest.mark.slow

PROMPT = "a photo of sks person"


@pytest.fixture
def subject(random_sd):
    words = ["class_images.count=1", "surrogate_model.gallery.steps=1", "attack.step_size=4"]
    words += ["--model", str(random_sd), "--photos", "1"]
    return read_subject(subject_parser("losses", "").parse_intermixed_args(words))


@pytest.mark.parametrize(
    "method", ["advdm", "fsmg", "aspl", "simac", "t_fsmg", "e_aspl", "e_aspl_released"]
)
def test_every_method_takes_the_same_steps_and_shows_its_photos(
    subject, method, random_sd, tmp_path
):
    trace = Trace(silent, 2)
    words = same_steps(method, 3, 2, fit_steps=2)
    assert any("training_steps" in word for word in words) == ("fsmg" in method)
    words += ["timestep_policy.keep=900"] if method == "simac" else []
    if method.startswith("e_aspl"):
        second = "attack.others.second"
        other = shifted(random_sd, tmp_path / "other", 1)
        words += [f"{second}.path={other}", f"{second}.gallery.steps=1"]
    protected = attacked(subject, *words, progress=trace, checkpoint=trace)
    assert len(trace.losses) == 6
    assert sorted(trace.photos) == [2, 4, 6]
    for steps, images in trace.photos.items():
        change = (images - subject.photos.images).abs().max() * 255
        assert 0 < change <= min(4 * steps, 8) + 1e-3
    assert (trace.photos[6] - protected).abs().max() * 255 <= 0.5 + 1e-3  # rounded


def test_watching_changes_nothing(subject):
    words = same_steps("aspl", 2, 2, fit_steps=None)
    trace = Trace(silent, 2)
    watched = attacked(subject, *words, progress=trace, checkpoint=trace)
    assert torch.equal(watched, attacked(subject, *words, progress=silent))


def test_losses_on_fixed_draws_are_repeatable_and_see_the_photos(random_sd):
    model = model_files.load(str(random_sd))
    draws = SeededDraws(0, "0", model.latent_shape)
    photos = Portraits(identities=["0"]).read("0", 64).set_B

    def losses(names, images):
        table = fixed_loss(model, PhotoSet(names, images), PROMPT, draws, [5, 500])
        assert table.timestep.tolist() == [5, 500]
        return table.loss.tolist()

    first = losses(photos.names, photos.images)
    assert losses(photos.names, photos.images) == first
    assert losses(photos.names, 1 - photos.images) != first
    alone = [losses([name], photos.images[k : k + 1]) for k, name in enumerate("abcd")]
    together = losses(list("abcd"), photos.images)
    assert torch.tensor(alone).mean(0).tolist() == pytest.approx(together, rel=1e-4)


def test_the_command_writes_numbers_and_figure(random_sd, tmp_path):
    words = ["--model", str(random_sd), "--photos", "1", "--methods", "advdm", "aspl"]
    words += ["--iterations", "2", "--steps", "2", "--output-dir", str(tmp_path)]
    words += ["class_images.count=1", "surrogate_model.gallery.steps=1"]
    main(words)
    table = pd.read_csv(tmp_path / "numbers.csv")
    steps = table.groupby(["quantity", "method"]).step.apply(lambda s: sorted(set(s))).to_dict()
    assert steps == {
        ("ascended", "advdm"): [0, 1, 2, 3],
        ("ascended", "aspl"): [0, 1, 2, 3],
        ("fixed", "advdm"): [0, 2, 4],
        ("fixed", "aspl"): [0, 2, 4],
        ("fixed", "noise"): [0],
    }
    start = table[(table.quantity == "fixed") & (table.step == 0) & (table.method != "noise")]
    assert (start.groupby("timestep").loss.nunique() == 1).all()
    assert (tmp_path / "figure.png").stat().st_size > 10_000
