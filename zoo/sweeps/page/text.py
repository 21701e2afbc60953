"""The report as Markdown, and its numbers as CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from zoo.sweeps.page.analysis import CACHE, FLOPS, SPEED, Analysis, findings, interval_notes
from zoo.sweeps.page.arm_tables import (
    Cell,
    Table,
    arms_table,
    commands,
    environment_table,
    failure_table,
    front_table,
    group_tables,
    headline_table,
    speed_table,
)
from zoo.sweeps.page.figures import Picture
from zoo.sweeps.page.html import MEASURED
from zoo.sweeps.page.measures import Measure
from zoo.sweeps.page.read import FAILED, FINISHED

NUMBERS = ("mean", "low", "high", "n", "over", "difference", "difference_low", "difference_high", "pairs", "verdict")


def markdown_page(analysis: Analysis, pictures: Sequence[Picture]) -> str:
    """The report without the tables of all numbers; pictures are files beside it."""
    return "\n\n".join(_blocks(analysis, pictures)) + "\n"


def _blocks(analysis: Analysis, pictures: Sequence[Picture]) -> Iterator[str]:
    sweep = analysis.sweep
    yield f"# Sweep {_plain(sweep.name)}"
    if sweep.question:
        yield f"**{_plain(sweep.question)}**"
    facts = [f"{analysis.progress}.", f"Reference: {sweep.reference}."]
    facts += [f"Axis: {sweep.axis}."] if sweep.axis else []
    facts += [f"Arms are matched in {sweep.match}."] if sweep.match else []
    yield _plain(" ".join(facts))
    if lines := findings(analysis):
        yield "## What it says"
        yield _list(lines)
    yield from _table(arms_table(analysis))
    yield from _pictures(p for p in pictures if p.name == "schedules")
    if analysis.failures:
        yield from _table(failure_table(analysis))
    if analysis.notes:
        yield "## What is missing"
        yield _list(analysis.notes)
    yield from _table(headline_table(analysis))
    for table in group_tables(analysis):
        yield from _table(table)
    yield "## How to read the numbers"
    yield _list(interval_notes(analysis))
    yield from _pictures(p for p in pictures if p.name != "schedules" and not p.measured)
    yield from _table(front_table(analysis, "Pareto fronts", (CACHE, FLOPS)))
    yield from _measured(analysis, pictures)
    yield "## To do it again"
    yield "\n".join(f"    {line}" for command in commands(analysis) for line in command.splitlines())
    yield from _table(environment_table(analysis))


def _measured(analysis: Analysis, pictures: Iterable[Picture]) -> Iterator[str]:
    if analysis.speed:
        yield MEASURED[0]
        yield from _table(speed_table(analysis))
        yield from _pictures(p for p in pictures if p.measured)
        yield from _table(front_table(analysis, "Pareto fronts with speed", (SPEED,)))
        yield MEASURED[1]


def _table(table: Table) -> Iterator[str]:
    if table.rows:
        yield f"## {_plain(table.title)}"
        yield table_text(table)


def table_text(table: Table) -> str:
    """The rows of a table in Markdown."""
    rule = "|---" * len(table.head) + "|"
    rows = ["| " + " | ".join(map(_cell, row)) + " |" for row in table.rows]
    return "\n".join(["| " + " | ".join(map(_plain, table.head)) + " |", rule, *rows])


def _cell(cell: Cell) -> str:
    parts = [f"({cell.small})" if cell.small else "", f"**{cell.verdict}** ({cell.reason})" if cell.verdict else ""]
    return " ".join([_plain(cell.text), *(_plain(part, "|<>") for part in parts if part)])


def _plain(text: str, special: str = r"|<>\`*_[]") -> str:
    """Text of one line that Markdown shows as it is."""
    return re.sub(rf"([{re.escape(special)}])", r"\\\1", " ".join(text.split()))


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {_plain(line)}" for line in lines)


def _pictures(pictures: Iterable[Picture]) -> Iterator[str]:
    for picture in pictures:
        yield f"![{_plain(picture.caption)}]({picture.name}.png)"


def arms_csv(analysis: Analysis) -> str:
    """A line per arm: what it is, and its headline numbers."""
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
    """A line per arm and measure."""
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
    """Measured training speed by arm, tokens/s."""
    rows = [[arm, s.mean, *(s.ci95 or (None, None)), s.n, s.deviation] for arm, s in analysis.speed.items()]
    return _csv(["arm", "tokens_per_second", "low", "high", "seeds", "deviation"], rows)


def _csv(columns: list[str], rows: Iterable[list[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(["" if value is None else value for value in row] for row in rows)
    return text.getvalue()
