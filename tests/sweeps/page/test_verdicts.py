"""What a sweep's report concludes from its numbers: paired verdicts, who is dominated, fronts."""

import math
import random
import statistics

import pytest

from tests.sweeps import sweep_folder
from tests.sweeps.sweep_folder import ARMS, BITS, RIGHT, half, write_perplexity, write_sweep
from zoo.evaluation.results.statistics import student_interval
from zoo.sweeps.page.analysis import analyze, findings
from zoo.sweeps.page.arm_tables import front_table
from zoo.sweeps.page.read import read_sweep
from zoo.sweeps.page.summary import ArmDifference, compare, pareto_standing, summarize, unpaired_verdict


def test_differences_are_paired_by_seed(standard):
    loss, recall = standard.measures.loss, standard.measures.recall
    for arm in ("linear", "hybrid"):
        for measure, table, scale in ((loss, BITS, 1), (recall, RIGHT, 8)):
            each = [(a - b) / scale for a, b in zip(table[arm], table["exact"])]
            found = standard.comparisons[arm, measure].difference
            assert found.mean == pytest.approx(statistics.fmean(each))
            if measure is loss:
                assert found.ci95 == pytest.approx((found.mean - half(each), found.mean + half(each)))
            else:  # of a number from -1 to 1, as that of a share is
                share = student_interval((1 + found.mean) / 2, statistics.stdev(each) / 2, 3, (0, 1))
                assert found.ci95 == pytest.approx([2 * end - 1 for end in share])
    verdicts = {arm: standard.comparisons[arm, recall].verdict for arm in ("linear", "hybrid")}
    assert verdicts == {"linear": "worse", "hybrid": "worse"}
    assert standard.comparisons["linear", loss].verdict == "not resolved"
    assert not any(arm == "exact" for arm, _ in standard.comparisons)
    sentence = next(line for line in findings(standard) if line.startswith("bits per byte, text"))
    assert sentence == "bits per byte, text: from 2.042 (hybrid) to 2.25 (linear). " + (
        "Against exact: linear, hybrid not resolved."
    )


def test_pairing_resolves_what_overlapping_intervals_hide(tmp_path, monkeypatch):
    monkeypatch.setitem(sweep_folder.BITS, "linear", tuple(bits + 0.1 + 0.001 * n for n, bits in enumerate((1, 2, 3))))
    monkeypatch.setitem(sweep_folder.BITS, "exact", (1.0, 2.0, 3.0))
    analysis = analyze(read_sweep(write_sweep(tmp_path, {arm: ARMS[arm] for arm in ("linear", "exact")})))
    loss = analysis.measures.loss
    (_, high), (low, _) = (analysis.summaries[arm, loss].ci95 for arm in ("exact", "linear"))
    assert low < high
    assert analysis.comparisons["linear", loss].verdict == "worse"


def test_verdict_follows_the_sign_and_what_is_good():
    up = [ArmDifference(value) for value in (1.0, 1.1, 1.2)]
    assert compare(up, True).verdict == "better"
    assert compare(up, False).verdict == "worse"
    assert compare([ArmDifference(-d.value) for d in up], False).verdict == "better"
    assert compare([ArmDifference(value) for value in (-1.0, 1.1, 1.2)], True).verdict == "not resolved"
    assert compare([ArmDifference(value) for value in (1.0, 1.4)], True).verdict == "not resolved"  # t of one is 12.7
    assert compare([], True) is None


def test_one_seed_rests_on_samples_of_which_six_are_needed():
    assert compare([ArmDifference(1.0, (0.5, 1.5), 6)], True).verdict == "better"
    assert compare([ArmDifference(1.0, (0.5, 1.5), 5)], True).verdict == "not resolved"
    assert compare([ArmDifference(1.0, (-0.5, 1.5), 60)], True).verdict == "not resolved"
    assert compare([ArmDifference(1.0)], True).verdict == "not tested"


def test_rounding_is_no_spread():
    values = [(2 / 3 - 1) / 32, (1 / 3 - 2 / 3) / 32, (2 / 3 - 1) / 32]
    assert len(set(values)) > 1
    found = compare([ArmDifference(value, (-0.03, 0.01), 32) for value in values], True)
    assert found.verdict == "not resolved" and found.difference.ci95 == (-0.03, 0.01)


def test_seeds_that_agree_exactly_do_not_make_an_interval_of_no_width():
    found = summarize([0.5, 0.5], [(0.3, 0.6), (0.4, 0.7)])
    assert (found.ci95, found.over, found.n) == ((0.3, 0.7), "samples", 2)
    assert summarize([0.5, 0.5], [(0.3, 0.6), None]).ci95 is None


def test_a_sweep_of_one_seed_says_so(tmp_path):
    analysis = analyze(read_sweep(write_sweep(tmp_path, seeds=(0,))))
    loss, recall = analysis.measures.loss, analysis.measures.recall
    found = analysis.summaries["linear", loss]
    assert (found.ci95, found.n, found.over) == ((1.5, 2.5), 1, "samples")  # the record's own
    compared = analysis.comparisons["linear", loss]
    assert compared.difference.mean == pytest.approx(0.25) and compared.difference.over == "samples"
    assert compared.verdict == "worse"  # every document by the same amount
    assert analysis.summaries["linear", recall].ci95 is None
    assert analysis.comparisons["linear", recall].verdict == "not tested"


def standing(costs, values, unresolved=0.0):
    """Of names with a cost and a quality, the more the better; qualities no further apart are not resolved."""

    def cheaper(a, b):
        return "better" if costs[a] < costs[b] else "worse" if costs[a] > costs[b] else "not resolved"

    def quality(a, b):
        apart = values[a] - values[b]
        return "not resolved" if abs(apart) <= unresolved else "better" if apart > 0 else "worse"

    return {name: (s.state, set(s.others)) for name, s in pareto_standing(list(costs), cheaper, quality).items()}


def test_dominated_is_what_a_sweep_over_sorted_points_leaves_behind():
    generator = random.Random(0)
    for _ in range(50):
        qualities = generator.sample(range(40), generator.randrange(1, 12))
        costs = {n: generator.randrange(6) for n in range(len(qualities))}
        found, best = standing(costs, dict(enumerate(qualities))), -math.inf
        for cost in sorted(set(costs.values())):
            level = [n for n in costs if costs[n] == cost]
            top = max(level, key=lambda n: qualities[n])
            for name in level:
                ahead = name == top and qualities[name] > best
                assert found[name][0] == ("on the front" if ahead else "dominated")
            best = max(best, qualities[top])


def test_what_noise_decides_is_neither_dominated_nor_on_the_front():
    equal = standing({"a": 1, "b": 1}, {"a": 0.5, "b": 0.50001}, unresolved=0.1)
    assert equal == {"a": ("not resolved", {"b"}), "b": ("not resolved", {"a"})}
    dearer = standing({"a": 1, "b": 2, "c": 3}, {"a": 0.5, "b": 0.45, "c": 0.2}, unresolved=0.1)
    assert dearer == {"a": ("on the front", set()), "b": ("not resolved", {"a"}), "c": ("dominated", {"a", "b"})}


def test_costs_that_are_not_resolved_save_nobody():
    quality = {("a", "b"): "better", ("b", "a"): "worse"}
    found = pareto_standing(["a", "b"], lambda a, b: "not resolved", lambda a, b: quality[a, b])
    assert (found["a"].state, found["b"].state, found["b"].others) == ("on the front", "dominated", ("a",))


def test_without_a_seed_in_common_arms_are_told_apart_by_welchs_test():
    near, far = summarize([1.0, 1.1, 1.2], [None] * 3), summarize([2.0, 2.1, 2.2], [None] * 3)
    wide, one = summarize([1.0, 2.0, 3.0], [None] * 3), summarize([9.0], [None])
    assert unpaired_verdict(near, far, higher_is_better=True) == "worse"
    assert unpaired_verdict(near, far, higher_is_better=False) == "better"
    assert unpaired_verdict(near, wide, higher_is_better=True) == "not resolved"
    assert unpaired_verdict(near, one, higher_is_better=True) == "not tested"


def test_fronts_of_quality_against_each_cost(standard):
    loss, recall = standard.measures.loss, standard.measures.recall
    found = {
        (m.label, kind): {p.arm: p.standing.state for p in standard.points(m, kind)}
        for m in (loss, recall)
        for kind in ("cache", "flops")
    }
    # hybrid has fewer bits than linear in each seed; exact cannot be told from either
    assert found[loss.label, "cache"] == {"linear": "on the front", "hybrid": "on the front", "exact": "not resolved"}
    # exact recalls more than both; linear and hybrid differ by the same in all seeds, which is not tested
    assert found[recall.label, "cache"] == {"linear": "on the front", "hybrid": "not resolved", "exact": "on the front"}
    assert standard.speed["linear"].mean == pytest.approx(304.5)  # median of 301..308


def test_equal_arms_are_named_equal(tmp_path):
    """The same layers twice, with numbers that differ by noise alone, in quality and in speed."""
    folder = write_sweep(tmp_path, {"first": ARMS["hybrid"], "second": ARMS["hybrid"]}, reference="first")
    for seed, bits in enumerate((1.76, 2.12, 2.24)):
        write_perplexity(folder / f"arms/second/seed-{seed}", ARMS["hybrid"], bits)
    analysis = analyze(read_sweep(folder))
    for kind in ("cache", "flops", "speed"):
        states = {p.arm: (p.standing.state, p.standing.others) for p in analysis.points(analysis.measures.loss, kind)}
        assert states == {"first": ("not resolved", ("second",)), "second": ("not resolved", ("first",))}
    table = front_table(analysis, "Pareto fronts", ("cache",))
    assert [cell.text for cell in table.rows[0][1:]] == ["-", "-", "first (from second), second (from first)"]


def test_pairs_are_of_the_same_samples_and_seeds(standard):
    loss, recall = standard.measures.loss, standard.measures.recall
    assert standard.pairs["linear", "exact", recall] == standard.pairs["hybrid", "exact", recall] == "worse"
    assert standard.pairs["linear", "hybrid", loss] == "worse"  # which no comparison with the reference says
    assert standard.pairs["linear", "exact", loss] == standard.comparisons["linear", loss].verdict == "not resolved"


def test_the_faster_is_the_cheaper(tmp_path):
    folder = write_sweep(tmp_path, {arm: ARMS[arm] for arm in ("linear", "exact")})
    for seed in range(3):
        for arm, rate in (("linear", 300.0), ("exact", 100.0)):
            sweep_folder.write_run(
                folder / f"arms/{arm}/seed-{seed}", ARMS[arm], seed, BITS[arm][seed], RIGHT[arm][seed], rate + seed
            )
    analysis = analyze(read_sweep(folder))
    states = {p.arm: p.standing.state for p in analysis.points(analysis.measures.recall, "speed")}
    assert states == {"linear": "on the front", "exact": "on the front"}  # one is faster, the other recalls more
    states = {p.arm: p.standing.state for p in analysis.points(analysis.measures.loss, "speed")}
    assert states == {"linear": "on the front", "exact": "not resolved"}


def test_intervals_of_speed_stay_above_zero(tmp_path, monkeypatch):
    folder = write_sweep(tmp_path, {"exact": ARMS["exact"]})
    for seed, rate in enumerate((10.0, 100.0, 1000.0)):
        sweep_folder.write_run(folder / f"arms/exact/seed-{seed}", ARMS["exact"], seed, 2.0, 8, rate)
    found = analyze(read_sweep(folder)).speed["exact"]
    assert 0 < found.ci95[0] < found.mean < found.ci95[1]
