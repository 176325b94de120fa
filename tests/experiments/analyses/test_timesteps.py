"""Gradients, predictions and survivors by timestep, on a random model."""

import pandas as pd
import pytest
import torch

from anticustom import model_files
from anticustom.draws import SeededDraws
from anticustom.identities import PhotoSet
from anticustom.losses import denoising
from experiments.analyses.subjects import draws_at
from experiments.analyses.timesteps import (
    gradients_table,
    main,
    predictions,
    runs,
    spectra_table,
    survivors_table,
)

pytestmark = pytest.mark.slow

PROMPT = "a photo of sks person"


@pytest.fixture(scope="module")
def model(random_sd):
    return model_files.load(str(random_sd))


@pytest.fixture(scope="module")
def photos():
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    return PhotoSet(("a.png", "b.png"), images)


@pytest.fixture(scope="module")
def draws(model):
    return SeededDraws(0, "ann", model.latent_shape)


def test_all_timesteps_have_the_same_noise(draws):
    (early, *_), (late, *_) = (draws_at(draws, "test", ["a.png"], 2, t) for t in (3, 700))
    assert (early.timesteps.item(), late.timesteps.item()) == (3, 700)
    assert torch.equal(early.noise, late.noise)
    assert torch.equal(early.posterior, late.posterior)


def test_the_gradient_is_the_one_computed_by_hand(model, photos, draws):
    (draw,) = draws_at(draws, "test", photos.names, 1, 40)
    table = gradients_table(model, photos, PROMPT, [draw])
    assert table.photo.tolist() == list(photos.names)
    for k in range(2):
        image = photos.images[k : k + 1].clone().requires_grad_()
        latents = model.latents(model.posterior(image), draw[k : k + 1].posterior)
        embeddings = model.text_embeddings([PROMPT])
        denoising(model, latents, draw[k : k + 1], embeddings).backward()
        assert table.gradient[k] == pytest.approx(image.grad.abs().mean().item(), rel=1e-4)


def test_predictions_of_noise_and_latents_make_the_noisy_latents(model, photos, draws):
    (draw,) = draws_at(draws, "test", photos.names, 1, 300)
    quantities = predictions(model, photos, PROMPT, draw)
    (clean, latents), (noise, true_noise) = quantities["latents"], quantities["noise"]
    assert torch.equal(true_noise, draw.noise)
    noisy = model.noisy(latents, draw.noise, draw.timesteps)
    torch.testing.assert_close(model.noisy(clean, noise, draw.timesteps), noisy)
    output = model.predict(noisy, draw.timesteps, model.text_embeddings([PROMPT]))
    torch.testing.assert_close(noise, output.detach(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(quantities["image"][0], model.decode(clean))


def test_a_velocity_is_turned_into_latents_and_noise(random_sd, photos, draws, monkeypatch):
    model = model_files.load(str(random_sd))
    model.scheduler.register_to_config(prediction_type="v_prediction")
    (draw,) = draws_at(draws, "test", photos.names, 1, 300)
    latents = model.latents(model.posterior(photos.images), draw.posterior)
    velocity = model.target(latents, draw.noise, draw.timesteps)
    monkeypatch.setattr(model, "predict", lambda *arguments: velocity)
    for predicted, true in predictions(model, photos, PROMPT, draw).values():
        torch.testing.assert_close(predicted, true, atol=1e-3, rtol=1e-3)


def test_spectra_have_a_row_for_each_quantity_and_frequency(model, photos, draws):
    table = spectra_table(model, photos, PROMPT, draws_at(draws, "test", photos.names, 2, 10))
    frequencies = table.groupby("quantity").frequency.apply(list).to_dict()
    latents = list(range(5))
    assert frequencies == {"image": list(range(33)), "latents": latents, "noise": latents}
    assert (table[["power", "true_power"]] > 0).all(axis=None)


def test_survivors_and_their_runs(photos):
    table = survivors_table(photos, [torch.tensor([1, 2, 7]), torch.tensor([5])])
    assert table.groupby("photo").timestep.apply(list).to_dict() == {
        "a.png": [1, 2, 7],
        "b.png": [5],
    }
    assert runs([1, 2, 7]) == [(1, 2), (7, 1)]
    assert runs([5]) == [(5, 1)]


def test_the_command_writes_numbers_and_figure(random_sd, tmp_path):
    words = ["--model", str(random_sd), "--photos", "1", "--noises", "2", "--output-dir"]
    words += [str(tmp_path / "new"), "timestep_policy.keep=900", "--timesteps", "900", "5"]
    main(words)
    table = pd.read_csv(tmp_path / "new" / "numbers.csv")
    gradients = table[table.quantity == "gradient"]
    assert gradients.timestep.tolist() == [5, 5, 900, 900]
    assert len(table[table.quantity == "surviving"]) <= 900
    assert (tmp_path / "new" / "figure.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--timesteps", "1000"], "timesteps"),
        (["--photos", "9"], "photos"),
        (["--identity", "nobody"], "nobody"),
        (["--model", "/nowhere"], "nowhere"),
        (["timestep_policy.windw=3"], "windw"),
    ],
)
def test_what_cannot_be_analysed_is_refused_in_one_line(words, named, random_sd, tmp_path):
    arguments = ["--model", str(random_sd), "--output-dir", str(tmp_path / "new"), *words]
    with pytest.raises(SystemExit, match=f"^error: .*{named}"):
        main(arguments)
    assert not (tmp_path / "new").exists()
