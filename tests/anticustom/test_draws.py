from itertools import combinations

import pytest
import torch

from anticustom.draws import Draw, SeededDraws, draw_batches, keyed_generator

SHAPE = (4, 8, 8)
ALL = torch.arange(1000)
DRAWS = SeededDraws(0, "ann", SHAPE)


def equal(first: Draw, second: Draw) -> list[bool]:
    """Return for each field whether the draws have the same numbers."""
    fields = Draw.__dataclass_fields__
    return [torch.equal(getattr(first, name), getattr(second, name)) for name in fields]


def first_number(*key) -> int:
    return torch.randint(2**62, (), generator=keyed_generator(*key)).item()


def test_a_generator_is_a_function_of_its_whole_key():
    assert first_number(0, "ann", "a.png") == first_number(0, "ann", "a.png")
    names = [(0, "ann", "a"), (1, "ann", "a"), (0, "anna", ""), (0, "an", "na")]
    keys = [*names, (0, "ann"), ("a", "ann", 0)]
    assert len({first_number(*key) for key in keys}) == len(keys)


def test_draws_repeat_and_leave_the_global_generator_alone():
    state = torch.get_rng_state()
    again = SeededDraws(0, "ann", SHAPE)("0 perturb", "a.png", 3, ALL)
    assert all(equal(DRAWS("0 perturb", "a.png", 3, ALL), again))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "changed", [{"seed": 1}, {"identity": "bob"}, {"name": "b.png"}, {"phase": "1 perturb"}]
)
def test_every_part_of_the_key_changes_all_numbers(changed):
    def draw(seed=0, identity="ann", name="a.png", phase="0 perturb"):
        return SeededDraws(seed, identity, SHAPE)(phase, name, 5, ALL)

    assert not any(equal(draw(), draw(**changed)))


def test_shapes_and_distributions():
    allowed = torch.tensor([3, 500, 999])
    draw = DRAWS("fit", "a.png", 200, allowed)
    assert draw.timesteps.dtype == torch.int64
    counts = (draw.timesteps[:, None] == allowed).sum(0)
    assert counts.sum() == 200
    assert counts.min() > 40
    normals = [draw.noise, draw.posterior, draw.clean_posterior, draw.ancestral]
    for normal in normals:
        assert normal.shape == (200, *SHAPE)
        assert normal.mean().abs() < 0.03
        assert (normal.std() - 1).abs() < 0.03
    for first, second in combinations(normals, 2):
        assert (first * second).mean().abs() < 0.03  # independent


def test_a_photos_draws_depend_on_no_other_photo():
    allowed = {"a": ALL, "b": ALL[:100], "c": ALL[900:]}

    def batches(*names):
        return draw_batches(DRAWS, "0 perturb", names, 4, [allowed[name] for name in names])

    together, reordered, alone = batches("a", "b", "c"), batches("c", "a", "b"), batches("b")
    assert len(together) == 4
    for k in range(4):
        assert together[k].noise.shape == (3, *SHAPE)
        assert together[k].timesteps[1] < 100
        assert together[k].timesteps[2] >= 900
        assert all(equal(together[k][1:2], alone[k]))
        assert all(equal(together[k][[2, 0, 1]], reordered[k]))
    assert not all(equal(together[0], together[1]))


def test_every_photo_needs_its_timesteps():
    with pytest.raises(ValueError, match="zip"):
        draw_batches(DRAWS, "0 perturb", ("a", "b"), 1, [ALL])
