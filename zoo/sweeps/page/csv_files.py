"""Numbers of a report as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from typing import Any

from zoo.sweeps.page.analysis import CACHE, Analysis
from zoo.sweeps.page.measures import Measure
from zoo.sweeps.page.read import FAILED, FINISHED

NUMBERS = ("mean", "low", "high", "n", "over", "difference", "difference_low", "difference_high", "pairs", "verdict")


def arms_csv(analysis: Analysis) -> str:
    """Returns a line per arm: its facts, and its headline numbers."""
    measures = analysis.measures.headline
    columns = ["arm", "reference", "layers", "softmax_share", "parameters", "train_tokens", "cache_length"]
    columns += ["cache_bytes", "flops_per_token", "runs", "finished", "failed"]
    rows = []
    for arm in analysis.sweep.arms:
        facts, runs = analysis.facts[arm], [run.status for run in analysis.sweep.runs if run.arm == arm]
        known = [arm, arm == analysis.sweep.reference, "+".join(facts.layers), facts.share, facts.parameters]
        known += [facts.train_tokens, analysis.cache_length, analysis.cost(arm, CACHE), facts.flops]
        known += [len(runs), runs.count(FINISHED), runs.count(FAILED)]
        rows.append([*known, *(value for m in measures for value in _numbers(analysis, arm, m))])
    return _csv([*columns, *(f"{m.label}: {part}" for m in measures for part in NUMBERS)], rows)


def measures_csv(analysis: Analysis) -> str:
    """Returns a line per arm and measure."""
    rows = [
        [arm, m.label, m.stem, m.task, m.variant, m.length, m.metric, m.higher_is_better, m.chance, *numbers]
        for m in analysis.measures.all
        for arm in analysis.sweep.arms
        if (arm, m) in analysis.summaries
        for numbers in [_numbers(analysis, arm, m)]
    ]
    columns = ["arm", "measure", "file", "task", "variant", "length", "metric", "higher_is_better", "chance"]
    return _csv([*columns, *NUMBERS], rows)


def _numbers(analysis: Analysis, arm: str, measure: Measure) -> list[Any]:
    """Values of :data:`NUMBERS`."""
    found, compared = analysis.summaries.get((arm, measure)), analysis.comparisons.get((arm, measure))
    values: list[Any] = [None] * len(NUMBERS)
    if found is not None:
        values[:5] = [found.mean, *(found.ci95 or (None, None)), found.n, found.over]
    if compared is not None:
        other = compared.difference
        values[5:] = [other.mean, *(other.ci95 or (None, None)), other.n, compared.verdict]
    return values


def speed_csv(analysis: Analysis) -> str:
    """Returns the measured training speed by arm, tokens/s."""
    rows = [[arm, s.mean, *(s.ci95 or (None, None)), s.n, s.deviation] for arm, s in analysis.speed.items()]
    return _csv(["arm", "tokens_per_second", "low", "high", "seeds", "deviation"], rows)


def _csv(columns: list[str], rows: Iterable[list[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(["" if value is None else value for value in row] for row in rows)
    return text.getvalue()
