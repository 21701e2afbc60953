"""One evaluation from beginning to end: task, result file, pictures and the table on the screen."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from zoo.evaluation.describe import describe_model, describe_run, describe_tokenizer, layer_pattern
from zoo.evaluation.plots import plot_documents, plot_training
from zoo.evaluation.results import SCHEMA, Record, write_results
from zoo.evaluation.run import OpenedRun
from zoo.evaluation.tasks import Outcome, Task
from zoo.files import read_metrics

FOLDER = "eval"


@dataclass(frozen=True)
class Written:
    """An evaluation and the files it left: the result first, then pictures."""

    outcome: Outcome
    content: dict[str, Any]
    files: list[Path]


def evaluate_run(run: OpenedRun, task: Task, seed: int = 0) -> Written:
    """Evaluate a run and write RUN_DIR/eval/; every file appears whole or not at all."""
    outcome = task.evaluate(run, seed)
    content = {
        "schema": SCHEMA,
        "run": describe_run(run, seed),
        "model": describe_model(run, [record.length for record in outcome.records]),
        "tokenizer": describe_tokenizer(run, outcome.bytes_per_token),
        "protocol": outcome.protocol,
        "results": [record.to_dict() for record in outcome.records],
        "warnings": outcome.warnings,
    }
    folder = run.folder / FOLDER
    file = folder / f"{outcome.stem}.json"
    write_results(file, content, outcome.samples)
    return Written(outcome, content, [file, *_draw(run, outcome, folder)])


def _draw(run: OpenedRun, outcome: Outcome, folder: Path) -> Iterable[Path]:
    record = next((r for r in outcome.records if r.metric == "bits_per_byte" and r.value is not None), None)
    if record is None or record.value is None:
        return
    model = layer_pattern(run.decoder.config.layer_types)
    curves, documents = folder / f"{outcome.stem}.training.png", folder / f"{outcome.stem}.documents.png"
    metrics = read_metrics(run.folder / "metrics.jsonl")
    if plot_training(curves, metrics, f"{model}: training", {outcome.title: record.value}):
        yield curves
    if plot_documents(documents, outcome.samples, f"{model}: {outcome.title}", record.value, record.ci95):
        yield documents


def show(written: Written, console: Console) -> None:
    """Print the numbers with their intervals, the warnings and the files."""
    outcome, protocol = written.outcome, written.outcome.protocol
    table = Table(title=outcome.title, title_justify="left")
    for heading in ("metric", "value", "95 % interval"):
        table.add_column(heading, justify="left" if heading == "metric" else "right")
    for record in outcome.records:
        table.add_row(record.metric, _number(record.value), _interval(record))
    console.print(table)
    for line in _summary(protocol, outcome.records):
        console.print(line, highlight=False, markup=False)
    for warning in outcome.warnings:
        console.print(f"note: {warning}", style="yellow", highlight=False, markup=False)
    for file in written.files:
        console.print(str(file), highlight=False, markup=False, soft_wrap=True)


def _summary(protocol: dict[str, Any], records: list[Record]) -> Iterable[str]:
    if "bytes" in protocol:
        count = protocol["documents"]
        yield f"{count:,} document{'s' * (count > 1)}, {protocol['bytes']:,} bytes, {protocol['tokens']:,} tokens"
    if "window" in protocol:
        yield f"windows of {protocol['window']:,} tokens, stride {protocol['stride']:,}"
    if records and records[0].tok_s:
        yield f"{records[0].wall_s:,.1f} s, {records[0].tok_s:,.0f} tokens/s"


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if value < 1000 else f"{value:.4g}"


def _interval(record: Record) -> str:
    return "-" if record.ci95 is None else f"{_number(record.ci95[0])} to {_number(record.ci95[1])}"
