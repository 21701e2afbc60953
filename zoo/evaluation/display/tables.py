"""Results as tables in the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from zoo.evaluation.evaluate import Written
from zoo.evaluation.results.records import Record

NUMBERS = {"exact_match": "EM", "accuracy": "acc.", "rank_accuracy": "rank", "rank_accuracy_per_token": "per token"}
NUMBERS |= {"answer_nll": "NLL", "f1": "F1"}


def show(written: Written, console: Console) -> None:
    """Print the numbers with their intervals, the warnings and the files."""
    outcome, protocol = written.outcome, written.outcome.protocol
    cells = bool(outcome.records) and outcome.records[0].unit == "sample" and "choices" in protocol
    console.print(_cell_table(written) if cells else _number_table(outcome.title, outcome.records))
    for line in _summary(protocol, outcome.records):
        console.print(line, highlight=False, markup=False)
    for warning in outcome.warnings:
        console.print(f"note: {warning}", style="yellow", highlight=False, markup=False)
    for file in written.files:
        console.print(str(file), highlight=False, markup=False, soft_wrap=True)


def _number_table(title: str, records: Sequence[Record]) -> Table:
    """One line per number; the variant and the length only where they differ, and of parts only bits per byte."""
    whole = records[0].variant if records else ""
    parts = {r.variant for r in records if r.metric == "bits_per_byte" and r.variant != whole}
    records = [r for r in records if r.variant not in parts or r.metric == "bits_per_byte"]
    table = Table(title=title, title_justify="left")
    variants, lengths = ({getattr(r, name) for r in records} for name in ("variant", "length"))
    leading = [name for name, seen in (("variant", variants), ("length", lengths)) if len(seen) > 1]
    for heading in (*leading, "metric", "value", "95 % interval"):
        table.add_column(heading, justify="left" if heading in ("variant", "metric") else "right")
    for record in records:
        row = [f"{getattr(record, name):,}" if name == "length" else record.variant for name in leading]
        table.add_row(*row, record.metric, number(record.value), _interval(record))
    return table


def _cell_table(written: Written) -> Table:
    """One line per variant and length, over all depths; a column per metric, intervals for the first."""
    records = [r for r in written.outcome.records if r.depth is None or not _pooled(written, r)]
    metrics = [m for m in NUMBERS if any(r.metric == m for r in records)]
    adapted = " (trained on recall tasks)" if written.content["model"]["adapted"] else ""
    table = Table(
        title=f"{written.outcome.title}{adapted}",
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 0, 0, 1),
    )
    places = list(dict.fromkeys((r.variant, r.length) for r in records))
    rows: list[tuple[str, ...]] = []
    for variant, length in places:
        here = {r.metric: r for r in records if (r.variant, r.length) == (variant, length)}
        main = next(here[m] for m in metrics if m in here)
        values = [_with_chance(here[m]) if m in here else "-" for m in metrics]
        rows.append((variant, f"{length:,}" if length else "-", *values, _interval(main, 2), str(main.n)))
    table.add_column("variant", overflow="fold")
    _, *columns = zip(*rows)
    for heading, column in zip(("length", *(NUMBERS[m] for m in metrics), "95 %", "n"), columns):
        widest = max(map(len, (heading, *column)))
        table.add_column(heading, justify="right", no_wrap=True, min_width=widest)  # only variants are folded
    for row in rows:
        table.add_row(*row)
    return table


def _pooled(written: Written, record: Record) -> bool:
    """Whether there is a record over all depths beside this one."""
    return any(
        other.depth is None and (other.variant, other.length) == (record.variant, record.length)
        for other in written.outcome.records
    )


def _with_chance(record: Record) -> str:
    if record.value is None:
        return "-"
    text = f"{record.value:.2f}"
    return text if record.chance is None else f"{text} ({record.chance:.2f})"


def _summary(protocol: dict[str, Any], records: Sequence[Record]) -> Iterable[str]:
    if "bytes" in protocol:
        count = protocol["documents"]
        yield f"{count:,} document{'s' * (count > 1)}, {protocol['bytes']:,} bytes, {protocol['tokens']:,} tokens"
    if {"window", "stride"} <= protocol.keys():
        yield f"windows of {protocol['window']:,} tokens, stride {protocol['stride']:,}"
    if "choices" in protocol:
        if any(r.metric == "rank_accuracy" for r in records):
            yield "in brackets: by chance"
    elif records and records[0].tok_s:
        yield f"{records[0].wall_s:,.1f} s, {records[0].tok_s:,.0f} tokens/s"


def number(value: float | None) -> str:
    """A number in four digits after the point, or so."""
    if value is None:
        return "-"
    return f"{value:.4f}" if abs(value) < 1000 else f"{value:.4g}"


def _interval(record: Record, digits: int = 4) -> str:
    if record.ci95 is None:
        return "-"
    low, high = record.ci95
    return f"{number(low)} to {number(high)}" if digits == 4 else f"{low:.{digits}f}..{high:.{digits}f}"
