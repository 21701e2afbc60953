"""The table of a piece, short enough for a terminal that shows only the last lines."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from zoo_kernels.bench.bench import Found
from zoo_kernels.bench.record import CHECK, Record

LIMIT = 9500  # characters
WORST = 12


def table(title: str, found: Iterable[Found], file: str = "") -> str:
    """The results of steps: one line per row, then what failed, what was dropped and what must be known."""
    found = list(found)
    records = [r for step in found for r in step.records]
    errors = [f"ERROR {e['name']}: {e['error'][:200]}" for step in found for e in step.errors]
    dropped = [label for step in found for label in step.dropped]
    lines = [*_checks(r for r in records if r.metric == CHECK), *_rows(r for r in records if r.metric != CHECK)]
    lines += errors[:20] + ([f"... and {len(errors) - 20} errors more"] if len(errors) > 20 else [])
    lines += [f"no time was left for {len(dropped)}: {'; '.join(dropped)[:600]}"] if dropped else []
    lines += [f"note: {text[:240]}" for text in dict.fromkeys(note for step in found for note in step.notes)]
    kept = [f"== {title} =="]
    for number, line in enumerate(lines):
        if sum(map(len, kept)) + len(kept) + len(line) > LIMIT:
            kept.append(f"... {len(lines) - number} lines more{f', in {file}' if file else ''}")
            break
        kept.append(line)
    return "\n".join(kept)


def _rows(records: Iterable[Record]) -> list[str]:
    rows: dict[str, dict[str, dict[str, list[Record]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for r in records:
        rows[f"-- {r.name} {r.dtype} {r.direction}"][str(r.shape)][r.implementation].append(r)
    lines = []
    for head, shapes in rows.items():
        lines.append(head)
        for shape, found in shapes.items():
            lines.append(f"{shape:24} " + " | ".join(who + _numbers(records) for who, records in found.items()))
    return lines


def _numbers(records: list[Record]) -> str:
    """The time of an implementation, and behind it what was computed, the peak last."""
    timings = [f" {short(x.median)} ms ({short(x.low)}-{short(x.high)})" for r in records if (x := r.timing)]
    values = []
    for r in sorted(records, key=lambda r: r.metric == "peak"):
        goal = "" if r.target is None else f" [{r.target} {'PASS' if r.reached else 'short'}]"
        if r.metric != "time":
            values.append(f" {r.metric} {short(r.value)} {r.unit}".rstrip() + goal)
    return "".join(timings[:1]) + ",".join(values)


def short(value: float) -> str:
    """A number with three digits."""
    return "0" if not value else f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _checks(records: Iterable[Record]) -> list[str]:
    """Passes in one line per family and direction, everything else in full, the worst first."""
    families: dict[str, list[Record]] = defaultdict(list)
    for r in records:
        families[f"{r.name.split()[0]} {r.dtype} {r.direction}"].append(r)
    lines = []
    for name, found in families.items():
        found.sort(key=lambda r: -r.value)
        bad, worst = [r for r in found if not r.reached], f"largest {short(found[0].value)} of it ({found[0].name})"
        lines.append(f"{name}: {len(found) - len(bad)} of {len(found)} within the allowance, {worst}")
        lines += [f"   short: {r.name} {r.shape}: {short(r.value)}" for r in bad[:WORST]]
    return lines


def verdict(found: Iterable[Found]) -> str:
    """One line: how many targets are reached, how many errors there were."""
    found = list(found)
    aimed = [r.reached for step in found for r in step.records if r.target is not None]
    return f"targets reached: {sum(map(bool, aimed))} of {len(aimed)}; errors: {sum(len(f.errors) for f in found)}"
