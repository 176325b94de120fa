import json
import math
import random

import pytest

from eval.statistics import estimate, paired_comparison
from experiments.standings import StandingsError, standings


def by_method(rows):
    return {row.configuration.method: row for row in rows}


def retentions(records, method):
    of = [record for record in records.values() if record["attack"] == method]
    return [record["scores"]["protected"]["identity_retention"] for record in of]


def test_the_best_is_first_and_what_cannot_be_told_apart_shares_its_rank(benchmark_of):
    records = benchmark_of({"noise": 0.0, "fsmg": 0.1, "aspl": 0.3, "simac": 0.302})
    rows = standings(records)
    assert [(row.configuration.method, row.rank) for row in rows] == [
        ("simac", 1),
        ("aspl", 1),
        ("fsmg", 3),
        ("noise", 4),
        ("none", None),
    ]
    assert rows[-1].unranked == "no protection"
    assert rows[-1].score.mean == pytest.approx(sum(0.7 + 0.01 * (i % 5) for i in range(12)) / 12)
    assert rows[0].score.mean == pytest.approx(estimate(retentions(records, "simac")).mean)


def test_tests_are_paired_and_corrected_for_all_pairs(benchmark_of):
    records = benchmark_of({"noise": 0.0, "aspl": 0.3, "simac": 0.302})
    rows = by_method(standings(records))
    test = rows["aspl"].against_placebo
    plain = paired_comparison(retentions(records, "aspl"), retentions(records, "noise"))
    assert test.mean.mean == pytest.approx(plain.difference.mean, rel=1e-5)
    assert test.mean.mean == pytest.approx(-0.3, abs=0.02)
    # the two comparisons with the placebo are the smallest of three
    assert test.p_value == pytest.approx(3 * plain.p_value, rel=1e-5)
    assert rows["simac"].against_best is None
    assert rows["noise"].against_placebo is None
    assert rows["noise"].against_best.p_value < 0.05 <= rows["aspl"].against_best.p_value


def test_nothing_is_ranked_on_fewer_than_ten_identities(benchmark_of):
    rows = standings(benchmark_of({"noise": 0.0, "simac": 0.4}, identities=9))
    assert all(row.rank is None and row.against_placebo is None for row in rows)
    assert rows[0].unranked == "fewer than 10 identities"
    assert len(rows[0].identities) == 9
    assert standings(benchmark_of({"simac": 0.4}, identities=10))[0].rank == 1


def test_seeds_are_averaged_before_anything_is_counted(made_up):
    records = {
        f"{i}_{seed}": made_up(0.1 * i + 0.02 * seed, identity=str(i), seed=seed)
        for i in range(4)
        for seed in range(3)
    }
    row = standings(records)[0]
    assert (row.score.n, row.seeds, row.identities) == (4, 3, ("0", "1", "2", "3"))
    expected = estimate([0.1 * i + 0.02 for i in range(4)])
    assert row.score.mean == pytest.approx(expected.mean, rel=1e-5)
    assert row.score.low == pytest.approx(expected.low, abs=2e-3)


def test_groups_do_not_mix(benchmark_of):
    records = benchmark_of({"noise": 0, "simac": 0.3}, eps=(4, 8))
    lora = benchmark_of({"simac": 0.1}, customizer="lora")
    rows = standings(records | {f"lora_{name}": record for name, record in lora.items()})
    groups = [(row.configuration.setting.customizer, row.configuration.eps) for row in rows]
    assert groups == [("dreambooth", 4)] * 3 + [("dreambooth", 8)] * 3 + [("lora", 8)] * 2
    alone = next(row for row in rows if row.configuration.setting.customizer == "lora")
    assert (alone.rank, alone.against_placebo, alone.against_best) == (1, None, None)


def test_recognizers_and_sources_do_not_mix(benchmark_of):
    own = benchmark_of({"simac": 0.3})
    other = benchmark_of({"simac": 0.2}, scorer={"backbone": "facenet"})
    imported = benchmark_of({"simac": 0.1})
    for record in imported.values():
        record |= {"imported": {"source": "a paper"}, "base_model": "tiny"}
        del record["scores"]["unprotected"]
    sets = {"own": own, "other": other, "imported": imported}
    rows = standings({f"{k}_{name}": r for k, of in sets.items() for name, r in of.items()})
    found = [(r.configuration.setting.backbone, r.configuration.setting.source) for r in rows]
    assert found == [
        *[("facenet", "this project")] * 2,
        ("sface", "a paper"),
        *[("sface", "this project")] * 2,
    ]
    assert [row.rank for row in rows] == [1, None, 1, 1, None]


def test_unprotected_records_serve_every_budget_with_its_identities(benchmark_of):
    records = benchmark_of({"simac": 0.3}, eps=(4, 8), identities=3)
    records |= benchmark_of({"none": 0.0}, eps=(0,), identities=5)
    rows = standings(records)
    assert [(row.configuration.method, row.configuration.eps) for row in rows] == [
        ("simac", 4),
        ("none", 4),
        ("simac", 8),
        ("none", 8),
    ]
    assert rows[1].identities == ("0", "1", "2")
    assert "psnr" not in rows[1].scores
    only = standings({k: r for k, r in records.items() if r["attack"] == "none"})
    assert [(row.configuration.eps, len(row.identities)) for row in only] == [(0, 5)]


def test_no_value_is_nan(made_up):
    records = {str(i): made_up(0.5, identity=str(i), fdfr=1.0) for i in range(12)}
    for record in records.values():
        record["scores"]["protected"] |= {"ism": None, "ism_failures_as_0": 0.0}
    row = standings(records)[0]
    assert (row.score.low, row.score.high) == (0.5, 0.5)
    assert (row.scores["ism"].mean, row.scores["ism"].n) == (None, 0)
    values = [getattr(of, end) for of in row.scores.values() for end in ("mean", "low", "high")]
    assert not any(math.isnan(value) for value in values if value is not None)


def test_methods_without_the_ranking_score_or_shared_identities(made_up):
    old = {f"old{i}": made_up(None, identity=str(i), attack="aspl") for i in range(12)}
    one = {f"a{i}": made_up(0.2 + 0.01 * i, identity=str(i)) for i in range(12)}
    two = {f"b{i}": made_up(0.9, identity=f"x{i}", attack="fsmg") for i in range(12)}
    rows = by_method(standings(old | one | two))
    assert rows["aspl"].unranked == "no identity retention"
    assert rows["simac"].rank == rows["fsmg"].rank == 1  # nothing tells them apart
    assert rows["fsmg"].against_best is None


def test_a_record_twice_is_refused_by_name(made_up):
    with pytest.raises(StandingsError, match=r"a and b are of one configuration, identity \(0\)"):
        standings({"a": made_up(), "b": made_up(0.4)})


def test_the_order_of_records_changes_nothing(benchmark_of):
    records = benchmark_of({"noise": 0, "aspl": 0.2, "simac": 0.3})
    shuffled = list(records.items())
    random.Random(0).shuffle(shuffled)
    assert standings(dict(shuffled)) == standings(json.loads(json.dumps(records)))
    assert standings({}) == []
