import itertools
import math
import random
import time

import pytest
from helpers import by_method, retentions

from eval.statistics import estimate, paired_comparison
from experiments.leaderboard.standings import StandingsError, standings

PGD = {"_target_": "anticustom.attacks.pgd.PGD"}


def test_the_best_is_first_and_what_cannot_be_told_apart_shares_its_rank(benchmark_of):
    records = benchmark_of({"noise": 0.0, "fsmg": 0.1, "aspl": 0.3, "simac": 0.305})
    rows = standings(records)
    assert [(row.method, row.rank, row.unranked) for row in rows] == [
        ("simac", 1, ""),
        ("aspl", 1, ""),
        ("fsmg", 3, ""),
        ("noise", 4, ""),
        ("none", None, "no protection"),
    ]
    assert rows[-1].score.mean == pytest.approx(sum(0.7 + 0.01 * (i % 5) for i in range(12)) / 12)
    assert rows[0].score.mean == pytest.approx(estimate(retentions(records, "simac")).mean)


def test_tests_against_one_row_are_corrected_together(benchmark_of):
    records = benchmark_of({"noise": 0.0, "aspl": 0.3, "simac": 0.305})
    rows = by_method(standings(records))
    test, behind = rows["aspl"].tests["against_placebo"], rows["noise"].tests["against_best"]
    for made, pair in ((test, ("aspl", "noise")), (behind, ("noise", "simac"))):
        plain = paired_comparison(*(retentions(records, method) for method in pair))
        assert made.mean.mean == pytest.approx(plain.difference.mean, rel=1e-5)
        assert made.p_value == pytest.approx(2 * plain.p_value, rel=1e-5)
    assert test.mean.mean == pytest.approx(-0.3, abs=0.02)
    assert "against_best" not in rows["simac"].tests
    assert "against_placebo" not in rows["noise"].tests
    assert behind.p_value < 0.05 <= rows["aspl"].tests["against_best"].p_value


def test_a_better_mean_that_one_person_makes_puts_no_method_behind(made_up):
    """`aspl` is better by its mean, `simac` on eleven of twelve people."""
    records = []
    for i in range(12):
        simac = 0.3 + 0.01 * i
        aspl = simac + 0.02 + 0.001 * i if i else -1.0
        records += [made_up(simac, identity=str(i)), made_up(aspl, attack="aspl", identity=str(i))]
    rows = by_method(standings(records))
    assert rows["aspl"].score.mean < rows["simac"].score.mean
    assert rows["simac"].tests["against_best"].p_value < 0.05
    assert rows["aspl"].rank == rows["simac"].rank == 1


def test_many_methods_on_ten_people_are_still_told_apart(benchmark_of):
    levels = {"noise": 0.0} | {f"m{i:02}": 0.1 + 0.05 * i for i in range(9)}
    rows = standings(benchmark_of(levels, identities=10, spread=0.001))
    # 45 pairs times the least p-value, 2 / 1024, are more than 0.05
    assert [row.rank for row in rows] == [*range(1, 11), None]
    assert all(row.tests["against_placebo"].p_value < 0.05 for row in rows[:9])


def test_the_row_says_where_no_p_value_can_tell_anything(benchmark_of):
    levels = {f"m{i:02}": 0.01 * (i + 1) for i in range(27)}
    *rows, none = standings(benchmark_of(levels, identities=10, spread=0.001))
    assert {row.unranked for row in rows} == {"10 identities are too few for 27 methods"}
    assert {row.rank for row in rows} == {none.rank} == {None}
    assert all(row.tests["against_best"].p_value >= 0.05 for row in rows[1:])
    del levels["m00"]
    *rows, none = standings(benchmark_of(levels, identities=10, spread=0.001))
    assert {row.unranked for row in rows} == {""}
    assert all(row.tests["against_best"].p_value < 0.05 for row in rows[1:])


def test_no_method_is_ranked_on_fewer_than_ten_identities(benchmark_of):
    rows = standings(benchmark_of({"noise": 0.0, "simac": 0.4}, identities=9))
    assert all(row.rank is None and "against_best" not in row.tests for row in rows)
    assert rows[0].unranked == "fewer than 10 identities"
    assert len(rows[0].identities) == 9
    test = rows[0].tests["against_placebo"]
    assert (test.p_value, test.mean.n) == (None, 9)
    assert test.mean.mean == pytest.approx(-0.4, abs=0.03)
    assert standings(benchmark_of({"simac": 0.4}, identities=10))[0].rank == 1


def test_seeds_are_averaged_before_anything_is_counted(made_up):
    places = itertools.product(range(4), range(3))
    records = [made_up(0.1 * i + 0.02 * k, identity=str(i), seed=k) for i, k in places]
    row = standings(records)[0]
    assert (row.score.n, row.seeds, row.identities) == (4, 3, ("0", "1", "2", "3"))
    expected = estimate([0.1 * i + 0.02 for i in range(4)])
    assert row.score.mean == pytest.approx(expected.mean, rel=1e-5)
    assert row.score.low == pytest.approx(expected.low, abs=2e-3)


def test_groups_do_not_mix(benchmark_of):
    records = benchmark_of({"noise": 0, "simac": 0.3}, eps=(4, 8))
    rows = standings(records + benchmark_of({"simac": 0.1}, customizer="lora"))
    groups = [(row.setting.customizer, row.eps) for row in rows]
    assert groups == [("dreambooth", 4)] * 3 + [("dreambooth", 8)] * 3 + [("lora", 8)] * 2
    alone = next(row for row in rows if row.setting.customizer == "lora")
    assert (alone.rank, alone.tests) == (1, {})


def test_recognizers_and_sources_do_not_mix(benchmark_of):
    records = benchmark_of({"simac": 0.3})
    records += benchmark_of({"simac": 0.2}, scorer={"backbone": "facenet"})
    origin = {"source": "a paper", "file": "x.csv", "line": 2}
    scores = {"protected": {"identity_retention": 0.1}}
    records += benchmark_of({"simac": 0.1}, imported=origin, scores=scores)
    rows = standings(records)
    assert [(row.setting.backbone, row.setting.source, row.rank) for row in rows] == [
        ("facenet", "this project", 1),
        ("facenet", "this project", None),
        ("sface", "a paper", 1),
        ("sface", "this project", 1),
        ("sface", "this project", None),
    ]


def test_unprotected_records_serve_every_budget_with_its_identities(benchmark_of):
    records = benchmark_of({"simac": 0.3}, eps=(4, 8), identities=3)
    clean = benchmark_of({"none": 0.0}, eps=(0,), identities=5)
    identities = {record.name: record.identity for record in records + clean}
    rows = standings(records + clean)
    groups = [(row.method, row.eps) for row in rows]
    assert groups == [("simac", 4), ("none", 4), ("simac", 8), ("none", 8)]
    assert rows[1].identities == ("0", "1", "2")
    assert "psnr" not in rows[1].scores
    assert {identities[name] for name in rows[1].records} == {"0", "1", "2"}
    assert [(row.eps, len(row.identities)) for row in standings(clean)] == [(0, 5)]


def test_no_value_is_nan(made_up):
    scores = {"fdfr": 1.0, "ism": None, "ism_failures_as_0": 0.0, "identity_retention": 0.5}
    records = [made_up(identity=str(i), scores={"protected": scores}) for i in range(12)]
    row = standings(records)[0]
    assert (row.score.low, row.score.high) == (0.5, 0.5)
    assert "ism" not in row.scores  # nobody has a value
    ends = [(score.mean, score.low, score.high) for score in row.scores.values()]
    assert not any(math.isnan(value) for values in ends for value in values if value is not None)


def test_a_record_twice_is_refused_by_name(made_up):
    with pytest.raises(StandingsError, match=r"a and b are of one row, identity \(0\) and seed"):
        standings([made_up(name="a"), made_up(0.4, name="b")])


def test_time_grows_with_the_number_of_records_alone(benchmark_of):
    def seconds(budgets):
        records = benchmark_of(dict.fromkeys("abcd", 0.3), identities=10, eps=range(budgets))
        records += benchmark_of({"none": 0}, identities=2 * budgets, eps=(0,))
        started = time.process_time()
        standings(records)
        return time.process_time() - started

    seconds(1)  # imports
    few, many = (min(seconds(n) for _ in range(2)) for n in (2, 8))
    assert many < 10 * few  # 4 would be linear, 16 quadratic


def test_the_order_of_records_changes_nothing(benchmark_of):
    records = benchmark_of({"noise": 0, "aspl": 0.2, "simac": 0.3})
    shuffled = list(records)
    random.Random(0).shuffle(shuffled)
    assert standings(shuffled) == standings(records)
    assert standings([]) == []


def test_a_variant_of_the_placebo_is_the_placebo_where_none_is_plain(made_up):
    """The variant that protects best, unless a variant has the placebo's plain name."""

    def rows_of(*placebos):
        records = [made_up(0.4 + 0.01 * i, identity=str(i)) for i in range(12)]
        for signs, (name, level) in enumerate(placebos):
            attack = {"attack": "noise", "method": name, "config": {"attack": PGD | {"s": signs}}}
            records += [made_up(level + 0.01 * i, identity=str(i), **attack) for i in range(12)]
        return by_method(standings(records))

    rows = rows_of(("noise (signs=1)", 0.7), ("noise (signs=2)", 0.6))
    assert rows["simac"].tests["against_placebo"].mean.mean == pytest.approx(-0.2)
    assert "against_placebo" not in rows["noise (signs=2)"].tests
    rows = rows_of(("noise", 0.7), ("noise (signs=2)", 0.6))
    assert rows["simac"].tests["against_placebo"].mean.mean == pytest.approx(-0.3)


def test_an_unprotected_victim_that_processors_made_otherwise_is_their_mean(made_up):
    records = []
    for name, attack, clean, kind in map(
        str.split, ("a noise 0.5 A", "b aspl 0.5 A", "c simac 0.7 B")
    ):
        kinds = dict.fromkeys(("protect", "unprotected", "protected"), kind)
        records.append(
            made_up(name=name, attack=attack, unprotected=float(clean), processors=kinds)
        )
    rows = by_method(standings(records))
    assert rows["none"].score.mean == pytest.approx(0.6)
    assert rows["none"].records == ("a", "c")
    assert rows["none"].processors == ("A", "B")
    assert (rows["aspl"].processors, rows["simac"].processors) == (("A",), ("B",))
