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

from zoo.evaluation.display.perplexity_plots import plot_context, plot_position
from zoo.evaluation.display.recall_plots import plot_costs
from zoo.evaluation.display.tables import number
from zoo.evaluation.evaluate import Written
from zoo.evaluation.results.answer_records import GENERATED, line_values
from zoo.evaluation.results.records import Record
from zoo.evaluation.results.statistics import Difference, paired_bootstrap
from zoo.files import replace_text
from zoo.tables import Cell, write_tables
from zoo.tables import Table as TextTable

Run = tuple[str, list[Written]]
STAR = "A star: differs from the first run, by the 95 % interval of a paired bootstrap on the same samples."
FEWEST = 6  # samples below which no interval is trusted to resolve a difference
SAME = ("data_sha", "haystack_sha", "split", "seed", "mode", "window", "stride", "target")  # of the protocol
MAIN = ("bits_per_byte", "accuracy", "exact_match", "rank_accuracy")


def compare_runs(runs: Sequence[Run], seed: int = 0) -> list[dict[str, Any]]:
    """Every number that all runs have, and how far each further run is from the first.

    Differences are of the same samples or documents, with a paired bootstrap; ``resolved`` says whether the 95 %
    interval leaves out zero, None for fewer than 6 samples. Where texts, haystacks or tokenizers differ, so that the
    samples are not the same, there is no difference.

    Args:
        runs: label and evaluations of each; tasks that not all have are left out.
    """
    rows = []
    for members in _matched(runs):
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


def _matched(runs: Sequence[Run]) -> Iterator[list[Written]]:
    """Evaluations of the same task, one of each run."""
    for first in runs[0][1]:
        found = [next((w for w in written if w.outcome.stem == first.outcome.stem), None) for _, written in runs]
        if all(found):
            yield [written for written in found if written is not None]


def comparison_notes(runs: Sequence[Run]) -> list[str]:
    """Why numbers of the runs cannot be compared, where that is so."""
    notes = []
    for members in _matched(runs):
        title = members[0].outcome.stem
        texts = {json.dumps([m.outcome.protocol.get(key) for key in SAME], sort_keys=True) for m in members}
        if len(texts) > 1:
            notes.append(
                f"{title}: the runs were not asked about the same text; their numbers say little side by side."
            )
        elif len({m.content["tokenizer"]["sha"] for m in members}) > 1:
            notes.append(f"{title}: tokenizers differ, so that a length holds more text for one run than for another.")
        elif others := sorted({r.length for r in members[0].outcome.records if _asked_others(members, r)}):
            lengths = ", ".join(f"{length:,}" for length in others)
            notes.append(
                f"{title}: the runs were not asked the same questions at lengths of {lengths} tokens; "
                "their numbers say little side by side."
            )
    left_out = {w.outcome.stem for _, written in runs for w in written} - {m[0].outcome.stem for m in _matched(runs)}
    return notes + [f"{stem}: not all runs have it." for stem in sorted(left_out)]


def _same(written: Written, record: Record) -> Record | None:
    keys = ("task", "variant", "length", "depth", "metric")
    return next((r for r in written.outcome.records if all(getattr(r, k) == getattr(record, k) for k in keys)), None)


def _asked_others(members: Sequence[Written], record: Record) -> bool:
    """Whether the samples of a number are known, and are not the same in all evaluations that have it."""
    asked = [[unit[:2] for unit in _units(m, other)] for m in members if (other := _same(m, record)) is not None]
    known = [samples for samples in asked if samples]
    return any(samples != known[0] for samples in known[1:])


def _difference(first: Written, other: Written, record: Record, seed: int) -> Difference | None:
    """Other minus first; None where their samples cannot be paired, or one has no finite number."""
    if any(first.outcome.protocol.get(key) != other.outcome.protocol.get(key) for key in SAME):
        return None
    per_token = record.task not in ("perplexity", "perplexity_context", "perplexity_position")
    if per_token and first.content["tokenizer"]["sha"] != other.content["tokenizer"]["sha"]:
        return None
    ours, theirs = (list(_units(written, record)) for written in (first, other))
    if not ours or [unit[:2] for unit in ours] != [unit[:2] for unit in theirs]:
        return None
    clusters = np.array([cluster for cluster, *_ in ours])
    a, b, weights = (
        np.array(column, dtype=np.float64) for column in zip(*((t[2], o[2], o[3]) for o, t in zip(ours, theirs)))
    )
    if not weights.sum() > 0 or not np.isfinite(a - b).all():
        return None
    return paired_bootstrap(a, b, seed, clusters, weights)


def _units(written: Written, record: Record) -> Iterator[tuple[str, Any, float, float]]:
    """What is drawn as one, what tells its samples apart, the value of each, and its weight."""
    lines = written.outcome.samples
    if record.task == "perplexity":
        yield from _document_units(lines, record)
    elif record.task == "perplexity_context":
        if (record.variant, record.metric) == ("context", "bits_per_byte"):
            for line in lines:
                cluster = line["id"].rpartition(":")[0]
                yield cluster, line["id"], line["nats"][str(record.length)], line["bytes"] * math.log(2)
    elif record.unit == "sample":
        metric = record.metric + GENERATED * record.variant.endswith(GENERATED)
        variant = record.variant.removesuffix(GENERATED)
        for line in lines:
            here = (line.get("variant"), line.get("length")) == (variant, record.length)
            if here and record.depth in (None, line["depth"]) and metric in (values := line_values(line)):
                yield line["id"], line["depth"], values[metric], 1.0


def _document_units(lines: list[dict[str, Any]], record: Record) -> Iterator[tuple[str, Any, float, float]]:
    """Nats and bytes of documents: all of them, of recalled tokens, or of the others."""
    if record.metric != "bits_per_byte" or record.variant.startswith("recall-"):
        return
    for line in lines:
        nats, size = np.float64(line["nats"]), line["bytes"]  # None becomes NaN
        if record.variant in ("recall", "other"):
            recalled = np.float64(line["recall_nats"]), line["recall_bytes"]
            nats, size = recalled if record.variant == "recall" else (nats - recalled[0], size - recalled[1])
        yield line["id"], None, nats, size * math.log(2)


def _describe(label: str, difference: Difference | None) -> dict[str, Any]:
    if difference is None:
        return {"run": label, "value": None, "ci95": None, "n": 0, "resolved": None}
    ci95 = difference.ci95
    resolved = None if ci95 is None or difference.n < FEWEST else not ci95[0] <= 0 <= ci95[1]
    return {"run": label, "value": difference.value, "ci95": ci95, "n": difference.n, "resolved": resolved}


def write_comparison(folder: Path, runs: Sequence[Run], rows: list[dict[str, Any]]) -> list[Path]:
    """comparison.json, comparison.md, comparison.tex and pictures in ``folder``; returns what was written."""
    notes = comparison_notes(runs)
    content = {"schema": "zoo-comparison/1", "runs": [label for label, _ in runs], "notes": notes, "rows": rows}
    table = folder / "comparison.json"
    replace_text(table, json.dumps(content, indent=1) + "\n")
    shown = _table(runs, rows)
    page = "\n".join([f"{STAR}\n", *(f"- {note}\n" for note in notes), shown.to_markdown()])
    return [table, *write_tables(folder / "comparison.md", [shown], f"{page}\n"), *_draw(folder, runs)]


def _draw(folder: Path, runs: Sequence[Run]) -> Iterator[Path]:
    for members in _matched(runs):
        outcome = members[0].outcome
        task = outcome.records[0].task if outcome.records else ""
        file = folder / f"{outcome.stem}.png"
        results = [(label, member.content) for (label, _), member in zip(runs, members)]
        records = [(label, content["results"]) for label, content in results]
        if task == "perplexity_context":
            yield from plot_context(file, records, outcome.title)
        elif task == "perplexity_position":
            yield from plot_position(file, records, outcome.title)
        elif task != "perplexity":
            yield from plot_costs(file, results, f"{outcome.title}: accuracy and cache")


def show_comparison(rows: list[dict[str, Any]], files: list[Path], console: Console, notes: Sequence[str] = ()) -> None:
    """The main numbers of all runs; a star where the difference from the first run is resolved."""
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


def _table(runs: Sequence[Run], rows: list[dict[str, Any]]) -> TextTable:
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
    if row["metric"] not in MAIN:
        return False
    keys = ("task", "variant", "length", "metric")
    return row["depth"] is None or not any(
        other["depth"] is None and all(other[k] == row[k] for k in keys) for other in rows
    )
