"""What the decoder's layers hold, on a random model."""

import pandas as pd
import pytest
import torch

from anticustom import model_files
from anticustom.draws import SeededDraws, draw_batches
from anticustom.identities import Portraits
from anticustom.images import write_png
from anticustom.losses import decoder_layers
from experiments.analyses.features import (
    decoder_features,
    layers_table,
    main,
    principal_pictures,
    relative_change,
)

pytestmark = pytest.mark.slow

NAMES = ("a.png", "b.png")


@pytest.fixture(scope="module")
def model(random_sd):
    return model_files.load(str(random_sd))


@pytest.fixture(scope="module")
def features(model):
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    draws = SeededDraws(0, "ann", model.latent_shape)
    (draw,) = draw_batches(draws, "test", NAMES, 1, [torch.tensor([10])] * 2)
    return decoder_features(model, images, "a photo of sks person", draw)


def test_every_residual_block_of_the_decoder_is_a_layer(model, features):
    names = list(decoder_layers(model))
    assert names == [f"{level}.{k}" for level in range(4) for k in range(2)]
    assert [tuple(f.shape) for f in features] == [(2, 8, s, s) for s in (1, 1, 2, 2, 4, 4, 8, 8)]


def test_relative_change():
    clean = torch.tensor([[3.0, 4.0], [0.0, 2.0]])[:, None, None]
    changed = clean + torch.tensor([[0.0, 5.0], [0.0, 0.0]])[:, None, None]
    assert relative_change(clean, changed).tolist() == [1, 0]
    assert relative_change(clean, 1.5 * clean).tolist() == [0.5, 0.5]


def test_shares_of_the_change_sum_to_one_and_follow_the_changes(model, features):
    layers = list(decoder_layers(model))
    protected = [f * (1 + 0.1 * k) for k, f in enumerate(features)]
    table = layers_table(NAMES, layers, features, protected)
    assert len(table) == len(NAMES) * len(layers)
    sums = table.groupby("photo").change_share.sum()
    assert sums.tolist() == pytest.approx([1, 1])
    shares = table.groupby("layer", sort=False).change_share.first().tolist()
    assert shares == pytest.approx([k / 28 for k in range(8)], abs=1e-6)


def test_unchanged_features_have_no_change(model, features):
    table = layers_table(NAMES, list(decoder_layers(model)), features, features)
    assert (table.relative_change == 0).all()
    same = table.high_frequency_share_clean == table.high_frequency_share_protected
    assert same[table["size"] > 1].all()


def test_components_are_those_of_the_greatest_variance():
    """One channel varies most, along x: its ramp is red, and the rest does not reach it."""
    generator = torch.Generator().manual_seed(0)
    clean = 0.01 * torch.randn(6, 8, 8, generator=generator)
    clean[4] += torch.arange(8.0)
    first, second = principal_pictures(clean, clean)
    assert first.shape == (8, 8, 3)
    assert torch.equal(first, second)
    assert 0 <= first.min() < first.max() <= 1
    ramp = torch.linspace(0, 1, 8).expand(8, 8)
    torch.testing.assert_close(first[..., 0], ramp, atol=0.02, rtol=0)


def test_features_of_one_pixel_or_two_channels_have_pictures_too():
    for shape in ((8, 1, 1), (2, 4, 4)):
        clean = torch.rand(shape, generator=torch.Generator().manual_seed(0))
        for picture in principal_pictures(clean, clean + 1):
            assert picture.shape == (*shape[1:], 3)
            assert picture.isfinite().all()


def test_the_command_protects_with_an_attack(random_sd, tmp_path):
    words = ["--model", str(random_sd), "--photos", "1", "--noises", "1", "--timesteps", "5", "500"]
    words += ["--output-dir", str(tmp_path), "attack.steps=2", "attack.step_size=4"]
    main(words)
    table = pd.read_csv(tmp_path / "numbers.csv", dtype={"layer": str})
    assert len(table) == 2 * 8
    assert (table.relative_change > 0).all()
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_the_command_reads_protected_photos(random_sd, tmp_path, capsys):
    photos = Portraits(identities=["0"]).read("0", 64).set_B
    for name, image in zip(photos.names, photos.images, strict=True):
        write_png(tmp_path / name, image)
    words = ["--model", str(random_sd), "--photos", "2", "--noises", "1", "--timesteps", "5"]
    words += ["--output-dir", str(tmp_path / "out"), "--protected", str(tmp_path)]
    main(words)
    table = pd.read_csv(tmp_path / "out" / "numbers.csv")
    assert (table.relative_change == 0).all()  # they are not protected at all

    (tmp_path / photos.names[1]).unlink()
    with pytest.raises(SystemExit, match=f"error: .*{photos.names[1]}"):
        main(words)
    for name in photos.names:
        write_png(tmp_path / name, torch.zeros(3, 32, 32))
    with pytest.raises(SystemExit, match="64 x 64"):
        main(words)
