"""Confidence intervals whose unit is the document, the sample or the seed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy

RESAMPLES = 2000
CELLS = 2**20  # counts drawn at a time


@dataclass(frozen=True)
class Estimate:
    """A value and its 95 % interval, None where they cannot be computed."""

    value: float | None
    ci95: tuple[float, float] | None


@dataclass(frozen=True)
class Difference:
    """A paired difference.

    Attributes:
        value: first minus second.
        ci95: its 95 % interval, None for a single unit.
        share: twice the share of resamples that lie at or beyond zero on the rarer side, at most 1; it is read like a
            two-sided p-value. None for a single unit.
        n: number of units.
    """

    value: float
    ci95: tuple[float, float] | None
    share: float | None
    n: int


def bootstrap_sums(columns: np.ndarray, seed: int, resamples: int = RESAMPLES) -> np.ndarray:
    """Computes column sums over documents drawn with replacement, as many as there are (cluster bootstrap).

    Args:
        columns: ``(documents, C)``, for instance nats and bytes of each document.
        seed: seed of the draws.
        resamples: number of draws.

    Returns:
        ``(resamples, C)`` float64; the columns of a row come from the same draw, so that their ratios are meaningful.
    """
    columns = np.asarray(columns, dtype=np.float64)
    documents = len(columns)
    generator = np.random.default_rng(seed)
    rows = max(1, CELLS // max(1, documents))
    sums = []
    for first in range(0, resamples, rows):
        size = min(rows, resamples - first)
        times = generator.multinomial(documents, np.full(documents, 1 / documents), size=size)
        with np.errstate(invalid="ignore"):  # documents without a finite number make the sums NaN, as they should be
            sums.append(times.astype(np.float64) @ columns)
    return np.concatenate(sums)


def interval(values: np.ndarray, level: float = 0.95, units: int | None = None) -> tuple[float, float]:
    """Computes the percentile interval of resampled values, expanded for few units (Hesterberg, 2015).

    Args:
        values: resampled values.
        level: level of the interval.
        units: number of units that were drawn from; resampling so few understates their spread by sqrt(1 - 1 / units),
            and the normal quantile that percentiles stand for understates Student's. None: neither is corrected.
    """
    tail = (1 - level) / 2
    if units is not None and units > 1:
        tail = float(scipy.special.ndtr(math.sqrt(units / (units - 1)) * scipy.special.stdtrit(units - 1, tail)))
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


def student_interval(
    mean: float, deviation: float, n: int, bounds: tuple[float, float] = (-math.inf, math.inf), level: float = 0.95
) -> tuple[float, float]:
    """Computes Student's interval of a mean, inside the range of its quantity.

    It is taken on a scale without ends, by the delta method, and transformed back: that of log(x - low) for a quantity
    with a lower bound, as rates have, that of the logit for one with two, as shares and their differences have.

    Args:
        mean: mean of ``n`` values.
        deviation: their standard deviation.
        n: number of values, at least 2.
        bounds: lowest and highest possible value; infinite where there is none.
        level: level of the interval.

    Raises:
        ValueError: on fewer than two values, or if the mean is not inside its bounds though the values differ.
    """
    if n < 2:
        raise ValueError(f"n={n}: expected at least two values.")
    if deviation == 0:
        return mean, mean
    low, high = bounds
    if not low < mean < high:
        raise ValueError(f"mean={mean}: expected a number inside {low} to {high}.")
    half = float(scipy.special.stdtrit(n - 1, (1 + level) / 2)) * deviation / math.sqrt(n)
    if low == -math.inf:
        return mean - half, mean + half
    if high == math.inf:
        factor = math.exp(half / (mean - low))
        return low + (mean - low) / factor, low + (mean - low) * factor
    width = high - low
    center, slope = math.log((mean - low) / (high - mean)), width / ((mean - low) * (high - mean))
    first, last = (low + width * float(scipy.special.expit(center + sign * slope * half)) for sign in (-1, 1))
    return first, last


def unpaired_share(first: tuple[float, float, int], second: tuple[float, float, int]) -> float | None:
    """Two-sided p-value of Welch's test of two independent means; None where the test is not defined.

    Args:
        first: mean, standard deviation and number of values.
        second: likewise.
    """
    if min(first[2], second[2]) < 2 or first[1] == second[1] == 0:
        return None
    return float(scipy.stats.ttest_ind_from_stats(*first, *second, equal_var=False).pvalue)


def wilson(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Computes the score interval of a share (Wilson, 1927).

    Unlike the normal interval it has a width at 0 and at n successes.

    Raises:
        ValueError: unless 0 <= successes <= n, n >= 1 and 0 < level < 1.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"successes={successes}, n={n}: expected n >= 1 and successes in 0..n.")
    if not 0 < level < 1:
        raise ValueError(f"level={level}: expected a number between 0 and 1.")
    found = scipy.stats.binomtest(successes, n).proportion_ci(level, "wilson")
    return float(found.low), float(found.high)


def bootstrap_mean(values: np.ndarray, seed: int) -> Estimate:
    """Estimates the mean of independent samples and its interval.

    Args:
        values: ``(samples,)``, at least one.
        seed: seed of the bootstrap.

    Raises:
        ValueError: if there are no values.
    """
    values = np.asarray(values, dtype=np.float64)
    if not len(values):
        raise ValueError("values is empty: there is no mean of no samples.")
    mean = float(values.mean())
    if not math.isfinite(mean):
        return Estimate(None, None)
    drawn = bootstrap_sums(values[:, None], seed)[:, 0] / len(values)
    ci95 = interval(drawn, units=len(values)) if len(values) > 1 else None
    return Estimate(mean, ci95)


def paired_bootstrap(
    a: np.ndarray,
    b: np.ndarray,
    seed: int,
    clusters: np.ndarray | None = None,
    weights: np.ndarray | None = None,
) -> Difference:
    """Estimates the difference of two systems that were measured on the same samples, in the same order.

    Args:
        a: ``(samples,)`` values of the first.
        b: ``(samples,)`` values of the second.
        seed: seed of the draws.
        clusters: ``(samples,)`` labels of what is drawn as one, for instance documents; None for single samples.
        weights: ``(samples,)``, for instance bytes: the difference is sum(a - b) / sum(weights), so that sums of nats
            by document give a difference of nats per byte. None for the mean of a - b.

    Raises:
        ValueError: on no samples, arrays of unequal lengths, or weights that sum to no positive number.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    weight = np.ones(len(first)) if weights is None else np.asarray(weights, dtype=np.float64)
    labels = np.arange(len(first)) if clusters is None else np.asarray(clusters)
    sizes = [len(first), len(second), len(weight), len(labels)]
    if not min(sizes) or len(set(sizes)) > 1:
        raise ValueError(
            f"a, b, weights and clusters have {', '.join(map(str, sizes))} entries: expected as many of each, at least "
            "one; pair the samples by their ids first."
        )
    if not weight.sum() > 0:
        raise ValueError(f"weights sum to {weight.sum()}: expected a positive number.")
    names, unit = np.unique(labels, return_inverse=True)
    table = np.stack([np.bincount(unit, column, len(names)) for column in (first - second, weight)], axis=1)
    value = float(table[:, 0].sum() / table[:, 1].sum())
    if len(names) == 1:
        return Difference(value, None, None, 1)
    sums = bootstrap_sums(table, seed)
    drawn = sums[:, 0] / np.where(sums[:, 1] > 0, sums[:, 1], np.nan)
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn):
        return Difference(value, None, None, len(names))
    share = min(1.0, 2 * min(float((drawn <= 0).mean()), float((drawn >= 0).mean())))
    return Difference(value, interval(drawn, units=len(names)), share, len(names))
