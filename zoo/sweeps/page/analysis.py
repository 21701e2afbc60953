"""Analysis of a sweep: numbers of every arm, comparisons with the reference, Pareto fronts, and missing results."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations, product

from zoo.sweeps.page.facts import (
    ArmFacts,
    arm_facts,
    cache_length,
    common_settings,
    environment_lines,
    speeds,
)
from zoo.sweeps.page.measures import Measure, Measures, differences, find_measures, missing, pair_verdict, value_of
from zoo.sweeps.page.read import FAILED, FINISHED, RunData, SweepData, list_notes
from zoo.sweeps.page.summary import (
    BETTER,
    NOT_RESOLVED,
    NOT_TESTED,
    SAMPLES,
    WORSE,
    ArmDifference,
    Comparison,
    Standing,
    Summary,
    compare,
    pareto_standing,
    summarize,
    unpaired_verdict,
)

CACHE, FLOPS, SPEED = "cache", "flops", "speed"


@dataclass(frozen=True)
class Point:
    """An arm in a plot of quality against cost, and its standing."""

    arm: str
    cost: float
    quality: Summary
    standing: Standing


@dataclass(frozen=True)
class Analysis:
    """Analysis of a sweep, from which pages and plots are made.

    Attributes:
        sweep: the sweep.
        facts: facts by arm.
        measures: the measures.
        summaries: numbers by arm and measure, where the arm has it.
        comparisons: comparisons with the reference by arm and measure, without the reference.
        pairs: verdicts on loss and recall of a first arm against a second one, where they share seeds.
        speed: training tokens/s by arm, measured.
        cache_length: length at which caches are compared, in tokens.
        settings: data, budget and software of the arms.
        notes: notes on what is missing or damaged.
    """

    sweep: SweepData
    facts: Mapping[str, ArmFacts]
    measures: Measures
    summaries: Mapping[tuple[str, Measure], Summary]
    comparisons: Mapping[tuple[str, Measure], Comparison]
    pairs: Mapping[tuple[str, str, Measure], str]
    speed: Mapping[str, Summary]
    cache_length: int | None
    settings: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def layers(self) -> list[str]:
        """Kinds of layers of all arms, sorted."""
        return sorted({layer for facts in self.facts.values() for layer in facts.layers})

    @property
    def failures(self) -> list[RunData]:
        """Runs that failed."""
        return [run for run in self.sweep.runs if run.status == FAILED]

    @property
    def progress(self) -> str:
        """Describes how many runs are finished, failed and open."""
        states = Counter(run.status for run in self.sweep.runs)
        total, done, failed = len(self.sweep.runs), states[FINISHED], states[FAILED]
        parts = [f"{done} of {total} runs finished"]
        parts += [f"{failed} failed"] if failed else []
        parts += [f"{total - done - failed} not finished yet"] if total > done + failed else []
        return ", ".join(parts)

    @property
    def complete(self) -> bool:
        """Whether every run has ended, finished or failed."""
        return all(run.status in (FINISHED, FAILED) for run in self.sweep.runs)

    def cost(self, arm: str, kind: str) -> float | None:
        """Returns the cost of an arm: cache bytes, FLOPs per token or tokens/s."""
        if kind == CACHE:
            return self.facts[arm].cache.get(self.cache_length) if self.cache_length else None
        if kind == FLOPS:
            return self.facts[arm].flops
        return self.speed[arm].mean if arm in self.speed else None

    def points(self, measure: Measure, kind: str) -> list[Point]:
        """Returns the arms with a known cost and quality, and which of them are on the Pareto front."""
        known = {arm: cost for arm in self.sweep.arms if (cost := self.cost(arm, kind)) is not None}
        found = {arm: self.summaries[arm, measure] for arm in known if (arm, measure) in self.summaries}
        standing = pareto_standing(list(found), self._cheaper(kind), partial(self._stands, measure))
        return [Point(arm, known[arm], summary, standing[arm]) for arm, summary in found.items()]

    def _cheaper(self, kind: str) -> Callable[[str, str], str]:
        """The verdict on the cost of one arm against another's; all but speed is known exactly."""

        def speed(arm: str, other: str) -> str:
            return unpaired_verdict(self.speed.get(arm), self.speed.get(other), higher_is_better=True)

        def exact(arm: str, other: str) -> str:
            first, second = self.cost(arm, kind) or 0.0, self.cost(other, kind) or 0.0
            return NOT_RESOLVED if first == second else BETTER if first < second else WORSE

        return speed if kind == SPEED else exact

    def _stands(self, measure: Measure, arm: str, other: str) -> str:
        """The verdict on the quality of one arm against another's."""
        if (arm, other, measure) in self.pairs:
            return self.pairs[arm, other, measure]
        if (other, arm, measure) in self.pairs:
            verdict = self.pairs[other, arm, measure]
            return {BETTER: WORSE, WORSE: BETTER}.get(verdict, verdict)
        first, second = (self.summaries.get((name, measure)) for name in (arm, other))
        return unpaired_verdict(first, second, measure.higher_is_better)


def analyze(sweep: SweepData) -> Analysis:
    """Analyzes a sweep."""
    measures = find_measures(sweep)
    facts = {arm: arm_facts(sweep, arm) for arm in sweep.arms}
    rates = {arm: speeds(sweep.finished(arm).values()) for arm in sweep.arms}
    return Analysis(
        sweep,
        facts,
        measures,
        _summaries(sweep, measures),
        _comparisons(sweep, measures),
        _pairs(sweep, measures),
        {arm: found for arm in sweep.arms if (found := _speed(rates[arm])) is not None},
        cache_length(facts.values()),
        [*common_settings(sweep), *environment_lines(sweep)],
        [*_reference_notes(sweep), *list_notes(sweep.runs), *missing(sweep)],
    )


def _summaries(sweep: SweepData, measures: Measures) -> dict[tuple[str, Measure], Summary]:
    found = {}
    for arm in sweep.arms:
        runs = sweep.finished(arm).values()
        for measure in measures.all:
            values = [one for run in runs if (one := value_of(measure, run)) is not None]
            summary = summarize([value for value, _ in values], [interval for _, interval in values], measure.bounds)
            if summary is not None:
                found[arm, measure] = summary
    return found


def _comparisons(sweep: SweepData, measures: Measures) -> dict[tuple[str, Measure], Comparison]:
    """Arms against the reference, over the seeds that both have finished."""
    reference = sweep.finished(sweep.reference)
    found = {}
    for arm in sweep.arms:
        runs = sweep.finished(arm) if arm != sweep.reference else {}
        pairs = [differences(reference[seed], run, measures) for seed, run in runs.items() if seed in reference]
        for measure in measures.all:
            mine: list[ArmDifference] = [pair[measure] for pair in pairs if measure in pair]
            comparison = compare(mine, measure.higher_is_better, measure.bounds)
            if comparison is not None:
                found[arm, measure] = comparison
    return found


def _pairs(sweep: SweepData, measures: Measures) -> dict[tuple[str, str, Measure], str]:
    """Verdicts on every two arms that share a seed; those with the reference are in the comparisons too."""
    found = {}
    for (arm, other), measure in product(combinations(sweep.arms, 2), measures.first):
        verdict = pair_verdict(sweep.finished(arm), sweep.finished(other), measure)
        if verdict is not None:
            found[arm, other, measure] = verdict
    return found


def _speed(rates: list[float]) -> Summary | None:
    return summarize(rates, [None] * len(rates), (0.0, math.inf))


def _reference_notes(sweep: SweepData) -> list[str]:
    if sweep.reference not in sweep.arms:
        return [f"the reference {sweep.reference!r} is not one of the arms: nothing is compared with it"]
    if not sweep.finished(sweep.reference):
        return [f"the reference {sweep.reference!r} has no finished run: nothing is compared with it"]
    return []


def findings(analysis: Analysis) -> list[str]:
    """Returns a sentence per headline measure: the range over arms, and which arms differ from the reference."""
    sentences = []
    for measure in analysis.measures.headline:
        means = {arm: analysis.summaries[arm, measure].mean for arm in _arms(analysis, measure)}
        if len(means) < 2:
            continue
        best, worst = sorted((min(means.values()), max(means.values())), reverse=measure.higher_is_better)
        ends = (f"{number(end)} ({', '.join(arm for arm in means if means[arm] == end)})" for end in (best, worst))
        spread = "the same for all arms" if best == worst else f"from {' to '.join(ends)}"
        sentences.append(f"{measure.label}: {spread}. {_against(analysis, measure)}")
    return sentences


def _arms(analysis: Analysis, measure: Measure) -> list[str]:
    return [arm for arm in analysis.sweep.arms if (arm, measure) in analysis.summaries]


def _against(analysis: Analysis, measure: Measure) -> str:
    by_verdict: dict[str, list[str]] = {}
    for arm in analysis.sweep.arms:
        comparison = analysis.comparisons.get((arm, measure))
        if comparison is not None:
            by_verdict.setdefault(comparison.verdict, []).append(arm)
    parts = [f"{', '.join(by_verdict[verdict])} {verdict}" for verdict in VERDICTS if verdict in by_verdict]
    return f"Against {analysis.sweep.reference}: {'; '.join(parts)}." if parts else "Not compared."


VERDICTS = (BETTER, WORSE, NOT_RESOLVED, NOT_TESTED)


def interval_notes(analysis: Analysis) -> list[str]:
    """Explains how to read the intervals of this sweep."""
    kinds = {(s.n > 1, s.over == SAMPLES) for s in analysis.summaries.values()}
    compared = analysis.comparisons.items()
    tests = sum(measure.headline and found.verdict != NOT_TESTED for (_, measure), found in compared)
    notes = []
    if any(several for several, _ in kinds):
        notes.append(
            "Numbers are means over seeds with Student's 95 % interval over seeds: it covers initial weights and the "
            "order of the data, not the choice of test texts and questions, which are the same for all runs. It cannot "
            "leave the range of its quantity: it is taken of the logit of shares, of the logarithm of other numbers."
        )
    if any(not several for several, _ in kinds):
        notes.append(
            "Arms with one seed have intervals over samples only, by bootstrap over documents or questions: they do "
            "not say how another seed would do. Perplexity per token and means of several then are not tested."
        )
    if (True, True) in kinds:
        notes.append("Where all seeds agree to the last digit, the interval is the widest of those over samples.")
    notes.append(
        f"Verdicts are against {analysis.sweep.reference!r}: differences on the same samples, averaged within a seed, "
        "then Student's 95 % interval over the seeds that both arms have; with one seed, the paired bootstrap over at "
        "least 6 samples. An interval with zero in it is 'not resolved', which is not the same as equal."
    )
    notes.append(
        "An arm is dominated only if another is resolved as better in quality and not as dearer, over the seeds that "
        "both have, or by Welch's test where they share none. It is not resolved while another that is not resolved as "
        "dearer cannot be told from it in quality: more seeds would tell."
    )
    if tests:
        notes.append(
            f"No correction for many comparisons: of the {tests} in the table of headline numbers, about "
            f"{tests / 20:.1f} would be resolved by chance if no arm differed."
        )
    return notes


def number(value: float) -> str:
    """Formats a number with four significant digits, below 1 with four decimals."""
    if abs(value) >= 10_000:
        return f"{value:,.0f}"
    return f"{value if abs(value) >= 1 else round(value, 4) + 0.0:.4g}"
