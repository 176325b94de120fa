import pytest
from helpers import by_method, retentions

from eval.statistics import paired_comparison
from experiments.leaderboard.samples import usual_people
from experiments.leaderboard.standings import standings


def test_rows_on_other_people_come_last_and_have_no_rank(benchmark_of):
    usual = benchmark_of({"noise": 0.0, "simac": 0.3})
    more = benchmark_of({"fsmg": 0.4}, identities=11) + benchmark_of({"aspl": 0.5}, identities=4)
    rows = standings(usual + more)
    assert [(row.method, row.comparable, row.unranked) for row in rows] == [
        ("simac", True, ""),
        ("noise", True, ""),
        ("none", True, "no protection"),
        ("aspl", False, "fewer than 10 identities"),
        ("fsmg", False, "other identities or seeds"),
    ]
    # the paired difference compares such a row, over the people whom both have
    few = rows[3].tests["against_placebo"]
    plain = paired_comparison(retentions(more, "aspl"), retentions(usual, "noise")[:4])
    assert few.mean.mean == pytest.approx(plain.difference.mean, rel=1e-5)
    assert (few.mean.n, few.p_value, rows[4].tests["against_best"].mean.n) == (4, None, 11)


def test_means_over_other_people_who_have_the_score_do_not_rank(made_up):
    """`easy` has the score of the ten people whom all methods protect, `hard` of all twenty."""
    records = []
    for i in range(20):
        level = 0.05 + 0.004 * i if i < 10 else 0.8
        levels = {"hard": level, "noise": level + 0.2 + 0.001 * i}
        levels["easy"] = level + 0.1 if i < 10 else None
        records += [made_up(value, attack=k, identity=str(i)) for k, value in levels.items()]
    rows = by_method(standings(records))
    assert rows["easy"].score.mean < rows["hard"].score.mean
    assert (rows["hard"].rank, rows["noise"].rank, rows["easy"].rank) == (1, 2, None)
    assert rows["easy"].unranked == "other identities or seeds"
    assert rows["easy"].tests["against_best"].mean.mean == pytest.approx(0.1)


def test_differences_are_of_the_seeds_that_both_have(made_up):
    """With each method a victim of seed 1 retains 0.3 more."""
    methods = [("noise", 0.5, (0, 1)), ("aspl", 0.3, (0, 1)), ("simac", 0.2, (1,))]
    records = [
        made_up(level + 0.3 * seed, attack=attack, identity=str(i), seed=seed)
        for attack, level, seeds in methods
        for i in range(3)
        for seed in seeds
    ]
    rows = by_method(standings(records))
    assert rows["simac"].tests["against_placebo"].mean.mean == pytest.approx(-0.3)
    assert rows["aspl"].tests["against_placebo"].mean.mean == pytest.approx(-0.2)
    apart = [record for record in records if record.attack != "noise"]
    apart += [made_up(attack="noise", identity=str(i), seed=2) for i in range(3)]
    assert not by_method(standings(apart))["simac"].tests


def test_rows_of_other_photos_are_named(made_up):
    records = [
        made_up(attack=attack, identity=i, digests={"photos": {"B": f"those of {i}"}})
        for attack in ("noise", "aspl", "simac")
        for i in "012"
        if (attack, i) != ("simac", "1")
    ]
    others = {"photos": {"B": "others"}}
    records.append(made_up(attack="simac", identity="1", unprotected=0.7, digests=others))
    photos = {name: row.other_photos for name, row in by_method(standings(records)).items()}
    assert photos == {"noise": (), "aspl": (), "simac": ("1",), "none": ("1",)}


def test_the_usual_people_are_those_of_most_rows_that_can_be_ranked():
    ten, twelve = (tuple(map(str, range(n))) for n in (10, 12))
    assert usual_people([ten, twelve, ten]) == ten
    assert usual_people([twelve, ten]) == twelve
    assert usual_people([("1", "2"), ("1", "2"), twelve]) == twelve
    assert usual_people([("1",), ("1",), ("1", "2")]) == ("1",)
    assert usual_people([]) == ()


def test_methods_without_the_ranking_score_or_shared_identities(made_up):
    records = [made_up(None, identity=str(i), attack="aspl") for i in range(12)]
    records += [made_up(0.2 + 0.01 * i, identity=str(i)) for i in range(12)]
    records += [made_up(0.9, identity=f"x{i}", attack="fsmg") for i in range(12)]
    rows = by_method(standings(records))
    assert rows["aspl"].unranked == "no identity retention"
    assert (rows["simac"].rank, rows["simac"].comparable) == (1, True)
    assert rows["fsmg"].unranked == "other identities or seeds"
    assert "against_best" not in rows["fsmg"].tests  # nobody is in both


def test_means_over_other_seeds_do_not_compare(benchmark_of):
    records = benchmark_of({"noise": 0.0, "aspl": 0.2}) + benchmark_of({"simac": 0.3}, seed=1)
    rows = standings(records)
    assert [(row.comparable, row.unranked) for row in rows] == [
        (True, ""),
        (True, ""),
        (True, "no protection"),
        (False, "other identities or seeds"),
    ]
    assert [row.method for row in rows] == ["aspl", "noise", "none", "simac"]
