"""Means with intervals over seeds, paired differences, verdicts, and Pareto fronts."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from zoo.evaluation.compare import FEWEST
from zoo.evaluation.statistics import student_quantile

Interval = tuple[float, float]
BETTER, WORSE, NOT_RESOLVED, NOT_TESTED = "better", "worse", "not resolved", "not tested"
SEEDS, SAMPLES = "seeds", "samples"
ROUNDING = 1e-9  # of the size of a number: values no further apart agree


@dataclass(frozen=True)
class Summary:
    """A number of an arm.

    Attributes:
        mean: over seeds. ci95: its 95 % interval, None where it cannot be told. n: seeds.
        over: what the interval is over: ``seeds``; ``samples`` of a single seed, or of several that agree, whose
            spread says nothing; empty without an interval.
    """

    mean: float
    ci95: Interval | None
    n: int
    over: str


@dataclass(frozen=True)
class Difference:
    """Another arm minus the reference with one seed: ``value`` over the same samples, ``ci95`` over ``n`` of them."""

    value: float
    ci95: Interval | None = None
    n: int = 0


@dataclass(frozen=True)
class Comparison:
    """A paired difference from the reference over the seeds that both have, and what it says."""

    difference: Summary
    verdict: str


def summarize(
    values: Sequence[float], intervals: Sequence[Interval | None], bounds: Interval | None = None
) -> Summary | None:
    """Mean over seeds with Student's interval, or with one seed the interval over its samples.

    Args:
        values: one per seed. intervals: of each value, over its samples.
        bounds: that the quantity cannot leave, at which the interval over seeds is cut.
    """
    if not values:
        return None
    n, mean = len(values), statistics.fmean(values)
    if n > 1 and max(values) - min(values) > ROUNDING * max(map(abs, values)):
        half = student_quantile(0.975, n - 1) * statistics.stdev(values) / math.sqrt(n)
        low, high = bounds or (-math.inf, math.inf)
        return Summary(mean, (max(mean - half, low), min(mean + half, high)), n, SEEDS)
    known = [interval for interval in intervals if interval is not None]
    if len(known) < n:
        return Summary(mean, None, n, "")
    return Summary(mean, (min(low for low, _ in known), max(high for _, high in known)), n, SAMPLES)


def compare(differences: Sequence[Difference], higher_is_better: bool) -> Comparison | None:
    """Verdict on paired differences, one per seed.

    With two seeds or more the samples of a seed are averaged first and the interval is Student's over seeds; else it
    is that of the paired bootstrap over samples, which must be at least 6. Without an interval nothing is tested.
    """
    found = summarize([d.value for d in differences], [d.ci95 for d in differences])
    if found is None:
        return None
    few = found.over == SAMPLES and min(d.n for d in differences) < FEWEST
    if found.ci95 is None:
        return Comparison(found, NOT_TESTED)
    if few or found.ci95[0] <= 0 <= found.ci95[1]:
        return Comparison(found, NOT_RESOLVED)
    return Comparison(found, BETTER if (found.mean > 0) == higher_is_better else WORSE)


def pareto_front(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """Names of the points that no other point dominates, by first coordinate.

    Args:
        points: two costs each. One point dominates another if it is no more in both and less in one; so points that
            are equal are both on the front or both off it.
    """
    front = []
    for name, (x, y) in points.items():
        if not any(a <= x and b <= y and (a, b) != (x, y) for a, b in points.values()):
            front.append(name)
    return sorted(front, key=lambda name: points[name])
