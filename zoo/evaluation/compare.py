"""Comparison of several runs: the same questions, paired differences against the first run, and plots."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from zoo.evaluation.display.terminal_tables import number
from zoo.evaluation.results.metrics import metric_named
from zoo.evaluation.results.models import Record
from zoo.evaluation.results.statistics import Difference, paired_bootstrap
from zoo.evaluation.tasks.result_kind import Unit, Written
from zoo.files import replace_text
from zoo.tables import Cell, write_tables
from zoo.tables import Table as TextTable

Compared = tuple[str, list[Written]]
STAR = "A star: differs from the first run, by the 95 % interval of a paired bootstrap on the same samples."
FEWEST = 6  # samples below which no interval is trusted to resolve a difference


def compare_runs(runs: Sequence[Compared], seed: int = 0) -> list[dict[str, Any]]:
    """Every number that all runs have, and how far each further run is from the first.

    Differences are of the same samples or documents, with a paired bootstrap; ``resolved`` says whether the 95 %
    interval leaves out zero, None for fewer than 6 samples. Where texts, haystacks or tokenizers differ, so that the
    samples are not the same, there is no difference.

    Args:
        runs: label and evaluations of each run; tasks that not all have are left out.
        seed: seed of the bootstrap.
    """
    rows = []
    for members in _matched(runs):
        for record in members[0].records:
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


def _matched(runs: Sequence[Compared]) -> Iterator[list[Written]]:
    """Evaluations of the same task, one of each run."""
    for first in runs[0][1]:
        found = [next((w for w in written if w.stem == first.stem), None) for _, written in runs]
        if all(found):
            yield [written for written in found if written is not None]


def comparison_notes(runs: Sequence[Compared]) -> list[str]:
    """Explains which numbers of the runs cannot be compared, and why."""
    notes = []
    for members in _matched(runs):
        title = members[0].stem
        texts = {json.dumps(_asked(m), sort_keys=True) for m in members}
        if len(texts) > 1:
            notes.append(
                f"{title}: the runs were not asked about the same text; their numbers say little side by side."
            )
        elif len({m.results.tokenizer.sha for m in members}) > 1:
            notes.append(f"{title}: tokenizers differ, so that a length holds more text for one run than for another.")
        elif others := sorted({r.length for r in members[0].records if _asked_others(members, r)}):
            lengths = ", ".join(f"{length:,}" for length in others)
            notes.append(
                f"{title}: the runs were not asked the same questions at lengths of {lengths} tokens; "
                "their numbers say little side by side."
            )
    left_out = {w.stem for _, written in runs for w in written} - {m[0].stem for m in _matched(runs)}
    return notes + [f"{stem}: not all runs have it." for stem in sorted(left_out)]


def _same(written: Written, record: Record) -> Record | None:
    keys = ("task", "variant", "length", "depth", "metric")
    return next((r for r in written.records if all(getattr(r, k) == getattr(record, k) for k in keys)), None)


def _asked_others(members: Sequence[Written], record: Record) -> bool:
    """Whether the samples of a number are known, and are not the same in all evaluations that have it."""
    asked = [_samples(_units(m, other)) for m in members if (other := _same(m, record)) is not None]
    known = [samples for samples in asked if samples]
    return any(samples != known[0] for samples in known[1:])


def _difference(first: Written, other: Written, record: Record, seed: int) -> Difference | None:
    """Other minus first; None where their samples cannot be paired, or one has no finite number."""
    if _asked(first) != _asked(other):
        return None
    if first.kind.of_tokens and first.results.tokenizer.sha != other.results.tokenizer.sha:
        return None
    ours, theirs = (_units(written, record) for written in (first, other))
    if not ours or _samples(ours) != _samples(theirs):
        return None
    clusters = np.array([unit.cluster for unit in ours])
    a, b = (np.array([unit.value for unit in units], dtype=np.float64) for units in (theirs, ours))
    weights = np.array([unit.weight for unit in ours], dtype=np.float64)
    if not weights.sum() > 0 or not np.isfinite(a - b).all():
        return None
    return paired_bootstrap(a, b, seed, clusters, weights)


def _asked(written: Written) -> Any:
    return written.kind.asked(written.protocol)


def _units(written: Written, record: Record) -> list[Unit]:
    return list(written.kind.units(record, written.samples))


def _samples(units: Sequence[Unit]) -> list[tuple[str, Any]]:
    """What tells the samples apart."""
    return [(unit.cluster, unit.sample) for unit in units]


def _describe(label: str, difference: Difference | None) -> dict[str, Any]:
    if difference is None:
        return {"run": label, "value": None, "ci95": None, "n": 0, "resolved": None}
    ci95 = difference.ci95
    resolved = None if ci95 is None or difference.n < FEWEST else not ci95[0] <= 0 <= ci95[1]
    return {"run": label, "value": difference.value, "ci95": ci95, "n": difference.n, "resolved": resolved}


def write_comparison(folder: Path, runs: Sequence[Compared], rows: list[dict[str, Any]]) -> list[Path]:
    """Writes comparison.json, comparison.md, comparison.tex and plots into ``folder``, and returns the files."""
    notes = comparison_notes(runs)
    content = {"schema": "zoo-comparison/1", "runs": [label for label, _ in runs], "notes": notes, "rows": rows}
    table = folder / "comparison.json"
    replace_text(table, json.dumps(content, indent=1) + "\n")
    shown = comparison_table(runs, rows)
    page = "\n".join([f"{STAR}\n", *(f"- {note}\n" for note in notes), shown.to_markdown()])
    return [table, *write_tables(folder / "comparison.md", [shown], f"{page}\n"), *_draw(folder, runs)]


def _draw(folder: Path, runs: Sequence[Compared]) -> Iterator[Path]:
    labels = [label for label, _ in runs]
    for members in _matched(runs):
        file = folder / f"{members[0].stem}.png"
        yield from members[0].kind.draw_runs(list(zip(labels, members)), file)


def show_comparison(rows: list[dict[str, Any]], files: list[Path], console: Console, notes: Sequence[str] = ()) -> None:
    """Prints the main numbers of all runs, with a star where the difference from the first run is resolved."""
    for note in notes:
        console.print(f"note: {note}", style="yellow", highlight=False, markup=False)
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


def comparison_table(runs: Sequence[Compared], rows: list[dict[str, Any]]) -> TextTable:
    """The main numbers of all runs; a star where the difference from the first run is resolved."""
    head = ["task", "variant", "length", "metric", *(label for label, _ in runs)]
    texts = [
        [row["task"], row["variant"], f"{row['length']:,}" if row["length"] else "-", row["metric"], *_values(row)]
        for row in rows
        if _is_main(row, rows)
    ]
    return TextTable("Runs compared", head, [[Cell(text) for text in line] for line in texts])


def _values(row: dict[str, Any]) -> list[str]:
    stars = ["", *(" *" if entry["resolved"] else "" for entry in row["differences"])]
    return [number(entry["value"]) + star for entry, star in zip(row["runs"], stars)]


def _is_main(row: dict[str, Any], rows: list[dict[str, Any]]) -> bool:
    """Whether a row belongs on a page: over all depths, the metrics to be read first."""
    if not metric_named(row["metric"]).main:
        return False
    keys = ("task", "variant", "length", "metric")
    return row["depth"] is None or not any(
        other["depth"] is None and all(other[k] == row[k] for k in keys) for other in rows
    )
