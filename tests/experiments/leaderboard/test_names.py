import pytest

from experiments.leaderboard.names import labels
from experiments.leaderboard.standings import standings

PGD = {"_target_": "anticustom.attacks.pgd.PGD"}


def methods(records):
    return sorted(row.method for row in standings(records) if not row.is_unprotected)


def test_seeds_and_identities_share_a_row(made_up):
    others = [made_up(seed=1), made_up(identity="7"), made_up(identity="8", command="x")]
    assert methods([made_up(), *others]) == ["simac"]


def test_records_of_one_row_have_the_shortest_of_their_names(made_up):
    names = ["simac (steps=6)", "simac", "SimAC at 6"]
    records = [made_up(identity=str(k), method=name) for k, name in enumerate(names)]
    assert methods(records) == ["simac"]


def test_equal_names_of_unlike_rows_are_told_apart_by_their_digests(made_up):
    records = [made_up(config={"attack": PGD | {"steps": steps}}) for steps in (6, 12)]
    apart = sorted(f"simac #{record.row.method[:4]}" for record in records)
    assert methods(records) == apart
    # the same at another budget or in another setting is nothing to tell apart
    elsewhere = [made_up(eps=4), made_up(customizer="lora")]
    assert methods([records[1], *elsewhere]) == ["simac", "simac", "simac"]


def test_equal_names_of_unlike_settings_are_told_apart_by_their_digests(made_up):
    lengths = [made_up(config={"gallery": {"prompts": ["a photo"], "steps": k}}) for k in (4, 8)]
    named = made_up(details="precision=float16", config={"precision": "float16"})
    details = {row.setting.details for row in standings([*lengths, named])}
    assert details == {"precision=float16", *(f"#{r.row.setting[:4]}" for r in lengths)}


def test_presets_that_come_to_one_method_have_a_row_each(made_up):
    row = made_up().row.model_dump()
    assert methods([made_up(row=row), made_up(row=row, attack="other")]) == ["other", "simac"]


@pytest.mark.parametrize("digests", [("ab12cd", "ab12ef"), ("ab12cd", "0034ef")])
def test_keys_keep_their_labels_apart_or_alike(digests):
    names = labels(((("a", 8), digest), "x") for digest in digests)
    assert set(names.values()) == {f"x #{digest[:4]}" for digest in digests}
