import math

import numpy as np
import pytest
from scipy import stats

from zoo.evaluation.results.statistics import (
    bootstrap_mean,
    bootstrap_sums,
    interval,
    paired_bootstrap,
    student_interval,
    unpaired_share,
    wilson,
)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(0, 10, 0.0, 0.27753), (10, 10, 0.72247, 1.0), (1, 10, 0.01788, 0.40415), (81, 263, 0.2553, 0.3662)],
)
def test_wilson_intervals_of_published_tables(successes, n, low, high):
    """The last is the example of Newcombe (1998), method 3."""
    assert wilson(successes, n) == pytest.approx((low, high), abs=6e-5)


@pytest.mark.parametrize("n", [1, 2, 7, 50])
@pytest.mark.parametrize("level", [0.5, 0.95, 0.999])
def test_wilson_ends_solve_the_equation_of_the_score_test(n, level):
    z = {0.5: 0.6744897501960817, 0.95: 1.959963984540054, 0.999: 3.2905267314918945}[level]
    for successes in range(n + 1):
        low, high = wilson(successes, n, level)
        assert 0 <= low <= successes / n <= high <= 1
        for end in (low, high):
            assert (successes / n - end) ** 2 == pytest.approx(z * z * end * (1 - end) / n, abs=1e-12)
        assert wilson(n - successes, n, level) == pytest.approx((1 - high, 1 - low))


@pytest.mark.parametrize(("successes", "n", "level"), [(0, 0, 0.95), (3, 2, 0.95), (-1, 2, 0.95), (1, 2, 1.0)])
def test_wilson_refuses_what_is_no_share(successes, n, level):
    with pytest.raises(ValueError, match="expected"):
        wilson(successes, n, level)


def test_bootstrap_sums_are_sums_of_whole_draws():
    """Powers of ten show how often each document was drawn: as many draws as there are documents, in both columns."""
    columns = np.stack([10.0 ** np.arange(5), 2 * 10.0 ** np.arange(5)], axis=1)
    sums = bootstrap_sums(columns, seed=0, resamples=300)
    times = np.array([[int(digit) for digit in f"{int(total):05d}"] for total in sums[:, 0]])
    assert (times.sum(axis=1) == 5).all()
    assert (sums[:, 1] == 2 * sums[:, 0]).all()
    assert np.abs(times.mean(axis=0) - 1).max() < 0.2


@pytest.mark.slow
def test_bootstrap_means_cover_the_truth_about_as_often_as_they_claim():
    random = np.random.default_rng(0)
    inside = 0
    for seed in range(200):
        low, high = bootstrap_mean(random.exponential(2.0, 80), seed).ci95
        inside += low <= 2.0 <= high
    low, high = wilson(inside, 200, 0.999)
    assert low <= 0.94 <= high


def test_bootstrap_means_of_few_values():
    assert bootstrap_mean([3.5], 0).value == 3.5
    assert bootstrap_mean([3.5], 0).ci95 is None
    assert bootstrap_mean([2.0, 2.0], 0).ci95 == (2.0, 2.0)
    assert bootstrap_mean([2.0, math.inf], 0).value is None
    with pytest.raises(ValueError, match="values is empty"):
        bootstrap_mean([], 0)


def test_pairing_finds_a_difference_that_unpaired_intervals_hide():
    random = np.random.default_rng(3)
    hard = random.normal(0, 10, 100)
    a, b = hard + 0.5 + random.normal(0, 0.5, 100), hard
    found = paired_bootstrap(a, b, seed=0)
    assert found.value == pytest.approx((a - b).mean())
    assert found.ci95[0] > 0
    assert found.share == 0
    assert (found.ci95[1] - found.ci95[0]) / 2 == pytest.approx(1.96 * (a - b).std() / 10, rel=0.1)
    assert bootstrap_mean(a, 0).ci95[0] < bootstrap_mean(b, 0).value
    back = paired_bootstrap(b, a, seed=0)
    assert (back.value, *back.ci95) == pytest.approx((-found.value, -found.ci95[1], -found.ci95[0]))


def test_no_difference_is_not_found():
    same = paired_bootstrap([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], seed=0)
    assert (same.value, same.ci95, same.share, same.n) == (0, (0, 0), 1, 3)
    noise = np.random.default_rng(1).normal(0, 1, (2, 60))
    assert paired_bootstrap(*noise, seed=0).share > 0.05


def test_the_share_is_a_two_sided_p_value_on_normal_data():
    difference = np.random.default_rng(2).normal(0, 1, 400)
    difference += 0.08 - difference.mean()
    z = 0.08 / (difference.std() / 20)
    found = paired_bootstrap(difference, np.zeros(400), seed=0)
    assert found.share == pytest.approx(math.erfc(z / math.sqrt(2)), abs=0.03)


def test_clusters_are_drawn_whole():
    """Ten copies of each sample in one cluster say no more than the sample: the interval stays, and does not shrink."""
    a = np.random.default_rng(4).normal(1, 1, 30)
    copies, labels = np.repeat(a, 10), np.repeat([f"document {i:02d}" for i in range(30)], 10)
    once, copied = paired_bootstrap(a, 0 * a, 0), paired_bootstrap(copies, 0 * copies, 0, labels)
    assert copied.ci95 == pytest.approx(once.ci95)
    assert copied.n == 30
    free = paired_bootstrap(copies, 0 * copies, 0)
    assert free.ci95[1] - free.ci95[0] < 0.5 * (once.ci95[1] - once.ci95[0])
    assert paired_bootstrap(copies, 0 * copies, 0, np.zeros(300)).ci95 is None


def test_weights_make_a_ratio_of_sums():
    a, b, weights = np.array([10.0, 90.0]), np.array([8.0, 100.0]), np.array([2, 40])
    found = paired_bootstrap(a, b, seed=0, weights=weights)
    assert found.value == pytest.approx(-8 / 42)
    assert found.ci95 == pytest.approx((-10 / 40, 2 / 2))


def test_samples_that_do_not_pair_are_refused():
    with pytest.raises(ValueError, match="2, 3, 2, 2 entries"):
        paired_bootstrap([1.0, 2.0], [1.0, 2.0, 3.0], 0)
    with pytest.raises(ValueError, match="0, 0, 0, 0 entries"):
        paired_bootstrap([], [], 0)
    with pytest.raises(ValueError, match="weights sum to 0"):
        paired_bootstrap([1.0], [2.0], 0, weights=[0.0])


def test_intervals_are_percentiles():
    assert interval(np.arange(101.0)) == pytest.approx((2.5, 97.5))


def log_odds(share):
    return math.log(share / (1 - share))


def test_student_intervals_of_unbounded_means_are_those_of_the_tables():
    for n, quantile in ((2, 12.7062), (3, 4.3027), (6, 2.5706), (31, 2.0423)):
        low, high = student_interval(5.0, 2.0, n)
        assert (high - low) / 2 == pytest.approx(quantile * 2.0 / math.sqrt(n), rel=1e-4)
        assert (high + low) / 2 == pytest.approx(5.0)


def test_student_intervals_of_bounded_means_are_even_on_their_scale():
    """A small spread is carried over as by the slope of the scale."""
    half = 4.3026527 * 0.01 / math.sqrt(3)
    for scale, bounds, mean in ((math.log, (0, math.inf), 0.4), (log_odds, (0, 1), 0.3)):
        low, high = student_interval(mean, 0.01, 3, bounds)
        assert scale(high) - scale(mean) == pytest.approx(scale(mean) - scale(low))
        assert (high - low) / 2 == pytest.approx(half, rel=0.01)
    share, difference = student_interval(0.7, 0.2, 4, (0, 1)), student_interval(0.4, 0.4, 4, (-1, 1))
    assert difference == pytest.approx([2 * end - 1 for end in share])
    assert student_interval(1.4, 0.2, 4, (1, math.inf)) == pytest.approx(
        [1 + end for end in student_interval(0.4, 0.2, 4, (0, math.inf))]
    )


@pytest.mark.parametrize("bounds", [(0, 1), (-1, 1), (0, math.inf), (1, math.inf)])
def test_student_intervals_stay_inside_their_range(bounds):
    low, high = bounds
    for mean in np.linspace(low, min(high, low + 5), 9)[1:-1]:
        for deviation in (1e-3, 0.3, 3.0):
            first, last = student_interval(mean, deviation, 3, bounds)
            assert low <= first < mean < last <= high
    assert student_interval(0.5, 0.0, 3, (0, 1)) == (0.5, 0.5)


def test_student_intervals_of_skewed_shares_cover_the_truth_about_as_often_as_they_claim():
    random = np.random.default_rng(1)
    values = random.beta(4, 2, size=(400, 5))
    found = [student_interval(row.mean(), row.std(ddof=1), 5, (0, 1)) for row in values]
    assert 0.92 < np.mean([low <= 2 / 3 <= high for low, high in found]) < 0.99


def test_student_intervals_refuse_what_has_none():
    with pytest.raises(ValueError, match="n=1: expected at least two values"):
        student_interval(0.5, 0.1, 1)
    with pytest.raises(ValueError, match=r"mean=1.5: expected a number inside 0 to 1"):
        student_interval(1.5, 0.1, 3, (0, 1))


def test_unpaired_means_are_told_apart_by_welchs_test():
    first, second = [27.5, 21.0, 19.0, 23.6, 17.0, 17.9], [27.1, 22.0, 20.8, 23.4, 23.4, 23.5, 25.8, 22.0, 24.8]
    means = [(np.mean(x), np.std(x, ddof=1), len(x)) for x in (first, second)]
    parts = [s**2 / n for _, s, n in means]
    t = (means[0][0] - means[1][0]) / math.sqrt(sum(parts))
    degrees = sum(parts) ** 2 / sum(p**2 / (n - 1) for p, (_, _, n) in zip(parts, means))
    assert unpaired_share(*means) == pytest.approx(2 * stats.t.sf(abs(t), degrees))
    assert unpaired_share((1.0, 0.1, 1), (2.0, 0.1, 3)) is None
    assert unpaired_share((1.0, 0.0, 3), (2.0, 0.0, 3)) is None


def test_intervals_of_few_units_cover_as_often_as_they_say():
    rng = np.random.default_rng(0)
    covered = sum(low <= 0 <= high for low, high in (bootstrap_mean(rng.normal(size=6), 0).ci95 for _ in range(400)))
    assert 0.91 <= covered / 400 <= 0.98
