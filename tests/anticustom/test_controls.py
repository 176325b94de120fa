"""The placebo, no attack, and photos that somebody else protected."""

import pytest
import torch

from anticustom.attacks.controls import NoAttack, Noise, Precomputed
from anticustom.attacks.pgd import PGD
from anticustom.images import quantize_within, write_png


def test_the_placebo_is_random_signs_times_eps(inputs_for, pictures):
    attack = Noise(eps=5)
    inputs = inputs_for(attack)
    before = inputs.photos.clone()
    protected = attack(inputs)
    change = (protected - before) * 255
    inside = (before > 5.5 / 255) & (before < 249.5 / 255)
    torch.testing.assert_close(
        change[inside].abs(), torch.full_like(change[inside], 5), atol=1e-3, rtol=0
    )
    assert change[inside].mean().abs() < 0.2
    assert protected.min() >= 0
    assert protected.max() <= 1
    assert torch.equal(inputs.photos, before)
    assert torch.equal(attack(inputs_for(attack)), protected)
    assert torch.equal(attack(inputs_for(attack, ("b.jpg",)))[0], protected[1])
    for other in ({"seed": 1}, {"identity": "bob"}):
        assert not torch.equal(attack(inputs_for(attack, **other)), protected)
    grey = torch.full((2, 3, 64, 64), 0.5)
    signs = attack(inputs_for(attack, photos=grey)) - grey
    assert -0.1 < (signs[0] * signs[1]).sign().mean() < 0.1


def test_controls_need_no_model(inputs_for):
    photos = inputs_for(None).photos
    for attack in (Noise(eps=8), NoAttack()):
        assert not attack.needs_surrogate
        attack(inputs_for(attack, surrogates=()))
    assert torch.equal(NoAttack()(inputs_for(None)), photos)
    assert PGD.needs_surrogate


@pytest.fixture
def protected_elsewhere(tmp_path, inputs_for):
    """A folder of the photos of ann, 6 grey levels off, in another order of names and suffixes."""
    photos = inputs_for(None).photos
    elsewhere = quantize_within(photos + 6 / 255, photos, 6)
    (tmp_path / "ann").mkdir()
    for name, image in zip(("a", "b"), elsewhere, strict=True):
        write_png(tmp_path / "ann" / f"{name}.png", image)
    return tmp_path, elsewhere


def test_precomputed_photos_are_read_by_their_stems(protected_elsewhere, inputs_for):
    root, elsewhere = protected_elsewhere
    attack = Precomputed(root=str(root), eps=6)
    assert not attack.needs_surrogate
    assert torch.equal(attack(inputs_for(attack)), elsewhere)
    turned = attack(inputs_for(attack, ("b.jpg", "a.png")))
    assert torch.equal(turned, elsewhere[[1, 0]])
    one_folder = Precomputed(root=str(root / "ann"), eps=6)
    assert torch.equal(one_folder(inputs_for(attack)), elsewhere)


def test_precomputed_photos_over_their_budget_are_refused(protected_elsewhere, inputs_for):
    root, _ = protected_elsewhere
    attack = Precomputed(root=str(root), eps=5)
    with pytest.raises(ValueError, match=r"a.png differs.*by 6 grey levels.*eps=5.*raise"):
        attack(inputs_for(attack))


def test_precomputed_photos_must_be_there_once(protected_elsewhere, inputs_for):
    root, elsewhere = protected_elsewhere
    attack = Precomputed(root=str(root), eps=8)
    (root / "ann" / "b.png").rename(root / "ann" / "bb.png")
    with pytest.raises(ValueError, match=r"one file named b.png.*found 0"):
        attack(inputs_for(attack))
    for suffix in ("png", "webp"):
        write_png(root / "ann" / f"b.{suffix}", elsewhere[1])
    with pytest.raises(ValueError, match="found 2"):
        attack(inputs_for(attack))
    with pytest.raises(ValueError, match=r"attack.root=.*no such folder"):
        Precomputed(root=str(root / "elsewhere"), eps=8)
