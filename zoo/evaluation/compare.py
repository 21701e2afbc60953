"""Several runs side by side: the same questions, paired differences against the first run, and pictures."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from zoo.evaluation.answer_records import GENERATED, line_values
from zoo.evaluation.curves import plot_context, plot_position
from zoo.evaluation.evaluate import Written
from zoo.evaluation.grids import plot_costs
from zoo.evaluation.results import Record
from zoo.evaluation.statistics import Difference, paired_bootstrap
from zoo.evaluation.tables import number
from zoo.files import replace_text

Run = tuple[str, list[Written]]
MAIN = ("bits_per_byte", "accuracy", "exact_match", "rank_accuracy")


def compare_runs(runs: Sequence[Run], seed: int = 0) -> list[dict[str, Any]]:
    """Every number that all runs have, and how far each further run is from the first.

    Differences are of the same samples or documents, with a paired bootstrap; ``resolved`` says whether the 95 %
    interval leaves out zero. Where the samples are not the same, because the tokenizers differ, there is no difference.

    Args:
        runs: label and evaluations of each, in the same order.
    """
    rows = []
    for members in zip(*(written for _, written in runs), strict=True):
        for record in members[0].outcome.records:
            found = [_same(member, record) for member in members]
            if any(other is None for other in found):
                continue
            numbers = [
                {"run": label, "value": r.value, "ci95": r.ci95, "n": r.n} for (label, _), r in zip(runs, found) if r
            ]
            rows.append(
                {
                    "task": record.task,
                    "variant": record.variant,
                    "length": record.length,
                    "depth": record.depth,
                    "metric": record.metric,
                    "higher_is_better": record.higher_is_better,
                    "runs": numbers,
                    "differences": [
                        _describe(label, _difference(members[0], other, record, seed))
                        for (label, _), other in zip(runs[1:], members[1:])
                    ],
                }
            )
    return rows


def _same(written: Written, record: Record) -> Record | None:
    keys = ("task", "variant", "length", "depth", "metric")
    return next((r for r in written.outcome.records if all(getattr(r, k) == getattr(record, k) for k in keys)), None)


def _difference(first: Written, other: Written, record: Record, seed: int) -> Difference | None:
    """Other minus first; None where their samples cannot be paired."""
    ours, theirs = (dict(_units(written, record)) for written in (first, other))
    if not ours or ours.keys() != theirs.keys():
        return None
    a, b = (np.array([units[key] for key in ours], dtype=np.float64) for units in (theirs, ours))
    if record.metric == "bits_per_byte":
        return paired_bootstrap(a[:, 0], b[:, 0], seed, weights=a[:, 1] * math.log(2))
    return paired_bootstrap(a[:, 0], b[:, 0], seed)


def _units(written: Written, record: Record) -> Iterator[tuple[Any, tuple[float, float]]]:
    """By sample or document: its value, and its bytes for the sums of perplexity."""
    if record.task == "perplexity":
        if record.metric == "bits_per_byte" and record.variant in ("window", "sliding", "stateful"):
            yield from ((line["id"], (line["nats"], line["bytes"])) for line in written.outcome.samples)
        return
    metric = record.metric + GENERATED * record.variant.endswith(GENERATED)
    variant = record.variant.removesuffix(GENERATED)
    for line in written.outcome.samples:
        if (line.get("variant"), line.get("length")) != (variant, record.length):
            continue
        if record.depth is None or record.depth == line["depth"]:
            value = line_values(line).get(metric)
            if value is not None:
                yield (line["id"], line["depth"]), (value, 1.0)


def _describe(label: str, difference: Difference | None) -> dict[str, Any]:
    if difference is None:
        return {"run": label, "value": None, "ci95": None, "n": 0, "resolved": None}
    ci95 = difference.ci95
    resolved = None if ci95 is None else not ci95[0] <= 0 <= ci95[1]
    return {"run": label, "value": difference.value, "ci95": ci95, "n": difference.n, "resolved": resolved}


def write_comparison(folder: Path, runs: Sequence[Run], rows: list[dict[str, Any]]) -> list[Path]:
    """comparison.json, comparison.md and pictures in ``folder``; returns what was written."""
    content = {"schema": "zoo-comparison/1", "runs": [label for label, _ in runs], "rows": rows}
    table = folder / "comparison.json"
    replace_text(table, json.dumps(content, indent=1) + "\n")
    page = folder / "comparison.md"
    replace_text(page, "\n".join(_markdown(runs, rows)) + "\n")
    return [table, page, *_draw(folder, runs)]


def _draw(folder: Path, runs: Sequence[Run]) -> Iterator[Path]:
    for members in zip(*(written for _, written in runs), strict=True):
        outcome = members[0].outcome
        task = outcome.records[0].task if outcome.records else ""
        file = folder / f"{outcome.stem}.png"
        results = [(label, member.content) for (label, _), member in zip(runs, members)]
        records = [(label, content["results"]) for label, content in results]
        if task == "perplexity_context":
            drawn = plot_context(file, records, outcome.title)
        elif task == "perplexity_position":
            drawn = plot_position(file, records, outcome.title)
        else:
            drawn = task != "perplexity" and plot_costs(file, results, f"{outcome.title}: accuracy and cache")
        if drawn:
            yield file


def show_comparison(rows: list[dict[str, Any]], files: list[Path], console: Console) -> None:
    """The main numbers of all runs; a star where the difference from the first run is resolved."""
    rows = [row for row in rows if _is_main(row, rows)]
    if not rows:
        console.print("The runs have no number in common.", style="yellow")
        return
    labels = [entry["run"] for entry in rows[0]["runs"]]
    table = Table(title="runs compared; * differs from the first, 95 % paired", title_justify="left")
    for heading in ("task", "variant", "length", "metric", *labels):
        table.add_column(heading, justify="left" if heading in ("task", "variant", "metric") else "right")
    for row in rows:
        length = f"{row['length']:,}" if row["length"] else "-"
        table.add_row(row["task"], row["variant"], length, row["metric"], *_values(row))
    console.print(table)
    for file in files:
        console.print(str(file), highlight=False, markup=False, soft_wrap=True)


def _markdown(runs: Sequence[Run], rows: list[dict[str, Any]]) -> Iterator[str]:
    yield "A star: differs from the first run, by the 95 % interval of a paired bootstrap on the same samples.\n"
    yield " | ".join(["| task", "variant", "length", "metric", *(f"`{label}`" for label, _ in runs)]) + " |"
    yield "|---" * 3 + "|---" + "|---:" * len(runs) + "|"
    for row in rows:
        if _is_main(row, rows):
            length = f"{row['length']:,}" if row["length"] else "-"
            yield " | ".join([f"| {row['task']}", row["variant"], length, row["metric"], *_values(row)]) + " |"


def _values(row: dict[str, Any]) -> list[str]:
    stars = ["", *(" *" if entry["resolved"] else "" for entry in row["differences"])]
    return [number(entry["value"]) + star for entry, star in zip(row["runs"], stars)]


def _is_main(row: dict[str, Any], rows: list[dict[str, Any]]) -> bool:
    """Whether a row belongs on a page: over all depths, the metrics to be read first."""
    if row["metric"] not in MAIN:
        return False
    keys = ("task", "variant", "length", "metric")
    return row["depth"] is None or not any(
        other["depth"] is None and all(other[k] == row[k] for k in keys) for other in rows
    )
