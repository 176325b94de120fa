"""The placebo, no attack, and photos that somebody else protected."""

import pytest
import torch

from anticustom.attacks.controls import NoAttack, Noise, Precomputed
from anticustom.attacks.pgd import PGD
from anticustom.images import quantize_within, write_png


def test_the_placebo_is_random_signs_times_eps(inputs_for):
    attack = Noise(eps=5)
    inputs = inputs_for(attack)
    before = inputs.photos.clone()
    protected = attack(inputs)
    change = ((protected - before) * 255)[(before > 5.5 / 255) & (before < 249.5 / 255)]
    torch.testing.assert_close(change.abs(), torch.full_like(change, 5), atol=1e-3, rtol=0)
    assert change.mean().abs() < 0.2
    assert 0 <= protected.min() <= protected.max() <= 1
    assert torch.equal(inputs.photos, before)
    assert torch.equal(attack(inputs_for(attack)), protected)
    assert torch.equal(attack(inputs_for(attack, ("b.jpg",)))[0], protected[1])
    for key in ({"seed": 1}, {"identity": "bob"}):
        assert not torch.equal(attack(inputs_for(attack, **key)), protected)
    grey = torch.full((2, 3, 64, 64), 0.5)
    signs = attack(inputs_for(attack, photos=grey)) - grey
    assert -0.1 < (signs[0] * signs[1]).sign().mean() < 0.1


def test_controls_need_no_model(inputs_for):
    inputs = inputs_for(None, surrogates=())
    assert torch.equal(NoAttack()(inputs), inputs.photos)
    Noise(eps=8)(inputs)
    assert not any(attack.needs_surrogate for attack in (Noise, NoAttack, Precomputed))
    assert PGD.needs_surrogate


@pytest.fixture
def elsewhere(inputs_for):
    """Return the photos 6 grey levels off."""
    photos = inputs_for(None).photos
    return quantize_within(photos + 6 / 255, photos, 6)


@pytest.fixture
def root(tmp_path, elsewhere):
    """Return a folder of these photos of ann, with other suffixes than the photos have."""
    (tmp_path / "ann").mkdir()
    for name, image in zip(("a", "b"), elsewhere, strict=True):
        write_png(tmp_path / "ann" / f"{name}.png", image)
    return tmp_path


def test_precomputed_photos_are_read_by_their_stems(root, elsewhere, inputs_for):
    inputs, attack = inputs_for(None), Precomputed(root=str(root), eps=6)
    assert torch.equal(attack(inputs), elsewhere)
    turned = attack(inputs_for(None, ("b.jpg", "a.png")))
    assert torch.equal(turned, elsewhere[[1, 0]])
    assert torch.equal(Precomputed(root=str(root / "ann"), eps=6)(inputs), elsewhere)


def test_precomputed_photos_over_their_budget_are_refused(root, inputs_for):
    attack = Precomputed(root=str(root), eps=5)
    with pytest.raises(ValueError, match=r"a.png differs.*by 6 grey levels.*eps=5.*raise"):
        attack(inputs_for(attack))


def test_precomputed_photos_must_be_there_once(root, elsewhere, inputs_for):
    inputs, attack = inputs_for(None), Precomputed(root=str(root), eps=8)
    (root / "ann" / "b.png").rename(root / "ann" / "bb.png")
    with pytest.raises(ValueError, match=r"one file named b.png.*found 0"):
        attack(inputs)
    for suffix in ("png", "webp"):
        write_png(root / "ann" / f"b.{suffix}", elsewhere[1])
    with pytest.raises(ValueError, match="found 2"):
        attack(inputs)
    with pytest.raises(ValueError, match=r"attack.root=.*no such folder"):
        Precomputed(root=str(root / "elsewhere"), eps=8)
