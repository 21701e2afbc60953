"""Statistics of a sweep: means with intervals over seeds, paired differences, verdicts, and Pareto fronts."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from zoo.evaluation.compare import FEWEST
from zoo.evaluation.results.statistics import student_interval, unpaired_share

Interval = tuple[float, float]
BETTER, WORSE, NOT_RESOLVED, NOT_TESTED = "better", "worse", "not resolved", "not tested"
SEEDS, SAMPLES = "seeds", "samples"
UNBOUNDED = (-math.inf, math.inf)
FRONT, DOMINATED = "on the front", "dominated"  # or NOT_RESOLVED
SIGNIFICANT = 0.05
ROUNDING = 1e-9  # of the size of a number: values no further apart agree


@dataclass(frozen=True)
class Summary:
    """A number of an arm, summarized over its seeds.

    Attributes:
        mean: mean over seeds.
        ci95: its 95 % interval, None where it cannot be computed.
        n: number of seeds.
        over: what the interval is over: ``seeds``; ``samples`` of a single seed, or of several that agree, whose spread
            says nothing; empty without an interval.
        deviation: standard deviation over seeds, None where ``over`` is not seeds.
    """

    mean: float
    ci95: Interval | None
    n: int
    over: str
    deviation: float | None = None


@dataclass(frozen=True)
class ArmDifference:
    """Another arm minus the reference with one seed: ``value`` over the same samples, ``ci95`` over ``n`` of them."""

    value: float
    ci95: Interval | None = None
    n: int = 0


@dataclass(frozen=True)
class Comparison:
    """A paired difference from the reference over the seeds that both have, and the verdict."""

    difference: Summary
    verdict: str


def summarize(
    values: Sequence[float], intervals: Sequence[Interval | None], bounds: Interval = UNBOUNDED
) -> Summary | None:
    """Computes the mean over seeds with Student's interval, or with one seed the interval over its samples.

    Args:
        values: one value per seed.
        intervals: interval of each value, over its samples.
        bounds: bounds of the quantity, which the interval over seeds respects.
    """
    if not values:
        return None
    n, mean = len(values), statistics.fmean(values)
    if n > 1 and max(values) - min(values) > ROUNDING * max(map(abs, values)):
        deviation = statistics.stdev(values)
        return Summary(mean, student_interval(mean, deviation, n, bounds), n, SEEDS, deviation)
    known = [interval for interval in intervals if interval is not None]
    if len(known) < n:
        return Summary(mean, None, n, "")
    return Summary(mean, (min(low for low, _ in known), max(high for _, high in known)), n, SAMPLES)


def difference_bounds(bounds: Interval) -> Interval:
    """Bounds of the difference of two numbers inside ``bounds``."""
    low, high = bounds
    return low - high, high - low


def compare(
    differences: Sequence[ArmDifference], higher_is_better: bool, bounds: Interval = UNBOUNDED
) -> Comparison | None:
    """Judges paired differences, one per seed.

    With two seeds or more the samples of a seed are averaged first and the interval is Student's over seeds; else it is
    that of the paired bootstrap over samples, which must be at least 6. Without an interval nothing is tested.

    Args:
        differences: one difference per seed.
        higher_is_better: whether more is better.
        bounds: bounds of the two numbers.
    """
    found = summarize([d.value for d in differences], [d.ci95 for d in differences], difference_bounds(bounds))
    if found is None:
        return None
    few = found.over == SAMPLES and min(d.n for d in differences) < FEWEST
    if found.ci95 is None:
        return Comparison(found, NOT_TESTED)
    if few or found.ci95[0] <= 0 <= found.ci95[1]:
        return Comparison(found, NOT_RESOLVED)
    return Comparison(found, BETTER if (found.mean > 0) == higher_is_better else WORSE)


def unpaired_verdict(first: Summary | None, second: Summary | None, higher_is_better: bool) -> str:
    """Judges the first arm against the second where they share no seed, by Welch's test."""
    if first is None or second is None or first.n < 2 or second.n < 2:
        return NOT_TESTED
    share = unpaired_share(*((s.mean, s.deviation or 0.0, s.n) for s in (first, second)))
    if share is None or share >= SIGNIFICANT:
        return NOT_RESOLVED
    return BETTER if (first.mean > second.mean) == higher_is_better else WORSE


@dataclass(frozen=True)
class Standing:
    """Standing of a name in two quantities.

    Attributes:
        state: on the front, dominated, or not resolved.
        others: names that it is dominated by or not resolved from.
    """

    state: str
    others: tuple[str, ...] = ()


def pareto_standing(
    names: Sequence[str], cheaper: Callable[[str, str], str], quality: Callable[[str, str], str]
) -> dict[str, Standing]:
    """Returns the standing of each name in cost and quality.

    A name is dominated by another that is resolved as better in quality and is not resolved as dearer. It is not
    resolved while another that is not resolved as dearer cannot be distinguished from it in quality. Else it is on the
    front.

    Args:
        names: the names.
        cheaper: verdict on cost of a first name against a second one: better, worse, or neither.
        quality: verdict on quality of a first name against a second one.
    """
    found = {}
    for name in names:
        rivals = [other for other in names if other != name and cheaper(other, name) != WORSE]
        ahead = tuple(other for other in rivals if quality(other, name) == BETTER)
        level = tuple(other for other in rivals if quality(other, name) not in (BETTER, WORSE))
        state = DOMINATED if ahead else NOT_RESOLVED if level else FRONT
        found[name] = Standing(state, ahead or level)
    return found
