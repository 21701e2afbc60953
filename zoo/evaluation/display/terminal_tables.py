"""Results as tables in the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from zoo.evaluation.results.metrics import metric_named
from zoo.evaluation.results.models import Record


def number_table(title: str, records: Sequence[Record]) -> Table:
    """Table with one line per number; variant and length are shown only where they differ."""
    table = Table(title=title, title_justify="left")
    variants, lengths = ({getattr(r, name) for r in records} for name in ("variant", "length"))
    leading = [name for name, seen in (("variant", variants), ("length", lengths)) if len(seen) > 1]
    for heading in (*leading, "metric", "value", "95 % interval"):
        table.add_column(heading, justify="left" if heading in ("variant", "metric") else "right")
    for record in records:
        row = [f"{getattr(record, name):,}" if name == "length" else record.variant for name in leading]
        table.add_row(*row, record.metric, number(record.value), _interval(record))
    return table


def cell_table(title: str, records: Sequence[Record], columns: Sequence[str]) -> Table:
    """Table with one line per variant and length, over all depths; a column per metric, intervals for the first.

    Args:
        title: title of the table.
        records: the numbers.
        columns: metrics that have a column if there are numbers of them, in their order.
    """
    records = [r for r in records if r.depth is None or not _pooled(records, r)]
    metrics = [m for m in columns if any(r.metric == m for r in records)]
    table = Table(
        title=title,
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
    _, *cells = zip(*rows)
    headings = (metric_named(m).heading or metric_named(m).label for m in metrics)
    for heading, column in zip(("length", *headings, "95 %", "n"), cells):
        widest = max(map(len, (heading, *column)))
        table.add_column(heading, justify="right", no_wrap=True, min_width=widest)  # only variants are folded
    for row in rows:
        table.add_row(*row)
    return table


def _pooled(records: Sequence[Record], record: Record) -> bool:
    """Whether there is a record over all depths beside this one."""
    return any(
        other.depth is None and (other.variant, other.length) == (record.variant, record.length) for other in records
    )


def _with_chance(record: Record) -> str:
    if record.value is None:
        return "-"
    text = f"{record.value:.2f}"
    return text if record.chance is None else f"{text} ({record.chance:.2f})"


def number(value: float | None) -> str:
    """Formats a number with about four significant digits."""
    if value is None:
        return "-"
    return f"{value:.4f}" if abs(value) < 1000 else f"{value:.4g}"


def _interval(record: Record, digits: int = 4) -> str:
    if record.ci95 is None:
        return "-"
    low, high = record.ci95
    return f"{number(low)} to {number(high)}" if digits == 4 else f"{low:.{digits}f}..{high:.{digits}f}"
