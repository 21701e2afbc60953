"""A sweep, worked out: numbers of every arm, comparisons with the reference, fronts, and what is missing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from zoo.ablation.report.facts import ArmFacts, arm_facts, cache_length, speeds
from zoo.ablation.report.measures import SHARES, Measure, Measures, differences, find_measures, missing, value_of
from zoo.ablation.report.read import FAILED, FINISHED, RunData, SweepData, list_notes
from zoo.ablation.report.summary import (
    BETTER,
    NOT_RESOLVED,
    NOT_TESTED,
    SAMPLES,
    WORSE,
    Comparison,
    Difference,
    Summary,
    compare,
    pareto_front,
    summarize,
)

CACHE, FLOPS, SPEED = "cache", "flops", "speed"


@dataclass(frozen=True)
class Point:
    """An arm in a picture of quality against cost; ``front``: no other arm is at least as good in both."""

    arm: str
    cost: float
    quality: Summary
    front: bool


@dataclass(frozen=True)
class Analysis:
    """What pages and pictures show.

    Attributes:
        facts: by arm. summaries: by arm and measure, where it has it. comparisons: the same, not of the reference.
        speed: training tokens/s by arm, measured. cache_length: at which caches are compared, tokens.
        notes: of what is missing or damaged.
    """

    sweep: SweepData
    facts: Mapping[str, ArmFacts]
    measures: Measures
    summaries: Mapping[tuple[str, Measure], Summary]
    comparisons: Mapping[tuple[str, Measure], Comparison]
    speed: Mapping[str, Summary]
    cache_length: int | None
    notes: list[str] = field(default_factory=list)

    @property
    def failures(self) -> list[RunData]:
        """Runs that failed."""
        return [run for run in self.sweep.runs if run.status == FAILED]

    @property
    def progress(self) -> str:
        """How many runs are finished, failed and open."""
        states = Counter(run.status for run in self.sweep.runs)
        total, done, failed = len(self.sweep.runs), states[FINISHED], states[FAILED]
        parts = [f"{done} of {total} runs finished"]
        parts += [f"{failed} failed"] if failed else []
        parts += [f"{total - done - failed} not finished yet"] if total > done + failed else []
        return ", ".join(parts)

    @property
    def complete(self) -> bool:
        """Whether every run has ended, well or not."""
        return all(run.status in (FINISHED, FAILED) for run in self.sweep.runs)

    def cost(self, arm: str, kind: str) -> float | None:
        """Cost of an arm: cache bytes, FLOPs per token or tokens/s."""
        if kind == CACHE:
            return self.facts[arm].cache.get(self.cache_length) if self.cache_length else None
        if kind == FLOPS:
            return self.facts[arm].flops
        return self.speed[arm].mean if arm in self.speed else None

    def points(self, measure: Measure, kind: str) -> list[Point]:
        """Arms with a known cost and quality, and which of them are on the Pareto front."""
        known = {arm: cost for arm in self.sweep.arms if (cost := self.cost(arm, kind)) is not None}
        found = {arm: self.summaries[arm, measure] for arm in known if (arm, measure) in self.summaries}
        signs = (-1 if kind == SPEED else 1), (-1 if measure.higher_is_better else 1)
        front = pareto_front({arm: (signs[0] * known[arm], signs[1] * one.mean) for arm, one in found.items()})
        return [Point(arm, known[arm], summary, arm in front) for arm, summary in found.items()]


def analyse(sweep: SweepData) -> Analysis:
    """Work a sweep out."""
    measures = find_measures(sweep)
    facts = {arm: arm_facts(sweep, arm) for arm in sweep.arms}
    rates = {arm: speeds(sweep.finished(arm).values()) for arm in sweep.arms}
    return Analysis(
        sweep,
        facts,
        measures,
        _summaries(sweep, measures),
        _comparisons(sweep, measures),
        {arm: found for arm in sweep.arms if (found := summarize(rates[arm], [None] * len(rates[arm]))) is not None},
        cache_length(facts.values()),
        [*_reference_notes(sweep), *list_notes(sweep.runs), *missing(sweep)],
    )


def _summaries(sweep: SweepData, measures: Measures) -> dict[tuple[str, Measure], Summary]:
    found = {}
    for arm in sweep.arms:
        runs = sweep.finished(arm).values()
        for measure in measures.all:
            values = [one for run in runs if (one := value_of(measure, run)) is not None]
            bounds = (0.0, 1.0) if measure.metric in SHARES else None
            summary = summarize([value for value, _ in values], [interval for _, interval in values], bounds)
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
            mine: list[Difference] = [pair[measure] for pair in pairs if measure in pair]
            comparison = compare(mine, measure.higher_is_better)
            if comparison is not None:
                found[arm, measure] = comparison
    return found


def _reference_notes(sweep: SweepData) -> list[str]:
    if sweep.reference not in sweep.arms:
        return [f"the reference {sweep.reference!r} is not one of the arms: nothing is compared with it"]
    if not sweep.finished(sweep.reference):
        return [f"the reference {sweep.reference!r} has no finished run: nothing is compared with it"]
    return []


def findings(analysis: Analysis) -> list[str]:
    """A sentence per headline measure: the range over arms, and which arms differ from the reference."""
    sentences = []
    for measure in analysis.measures.headline:
        means = {arm: analysis.summaries[arm, measure].mean for arm in _arms(analysis, measure)}
        if len(means) < 2:
            continue
        order = sorted(means, key=lambda arm: -means[arm] if measure.higher_is_better else means[arm])
        best, worst = order[0], order[-1]
        text = f"{measure.label}: from {number(means[best])} ({best}) to {number(means[worst])} ({worst})"
        sentences.append(f"{text}. {_against(analysis, measure)}")
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
    """How to read the intervals of this sweep."""
    kinds = {(s.n > 1, s.over == SAMPLES) for s in analysis.summaries.values()}
    compared = analysis.comparisons.items()
    tests = sum(measure.headline and found.verdict != NOT_TESTED for (_, measure), found in compared)
    notes = []
    if any(several for several, _ in kinds):
        notes.append(
            "Numbers are means over seeds with Student's 95 % interval over seeds: it covers initial weights and the "
            "order of the data, not the choice of test texts and questions, which are the same for all runs."
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
    if tests:
        notes.append(
            f"No correction for many comparisons: of the {tests} in the table of headline numbers, about "
            f"{tests / 20:.1f} would be resolved by chance if no arm differed."
        )
    return notes


def number(value: float) -> str:
    """Four significant digits."""
    return f"{value:.4g}" if abs(value) < 10_000 else f"{value:,.0f}"
