"""Tables of a piece, short enough for a terminal that shows only the last lines."""

from __future__ import annotations

from collections.abc import Iterable

from kernel_bench.bench import CHECK, Bench, Record

LIMIT = 9500  # characters
WORST = 12


def table(bench: Bench, file: str = "") -> str:
    """The piece's results: one line per row, then what failed, what was dropped and what must be known."""
    checks = [r for r in bench.records if r.metric == CHECK]
    lines = _checks(checks) + _rows([r for r in bench.records if r.metric != CHECK])
    lines += [f"ERROR {e['name']}: {e['error'][:200]}" for e in bench.errors[:20]]
    if len(bench.errors) > 20:
        lines.append(f"... and {len(bench.errors) - 20} errors more")
    if bench.dropped:
        lines.append(f"no time was left for {len(bench.dropped)}: {'; '.join(bench.dropped)[:600]}")
    lines += [f"note: {text[:240]}" for text in bench.notes]
    return _fit(f"== {bench.piece} ==", lines, file)


def _fit(title: str, lines: list[str], file: str) -> str:
    kept, used = [title], len(title)
    for number, line in enumerate(lines):
        if used + len(line) > LIMIT:
            kept.append(f"... {len(lines) - number} lines more{f', in {file}' if file else ''}")
            break
        kept.append(line)
        used += len(line) + 1
    return "\n".join(kept)


def _rows(records: list[Record]) -> list[str]:
    blocks: dict[str, list[str]] = {}
    for (name, shape, kind, direction), implementations in _grouped(records).items():
        parts = [f"{who}{_time(found)}{_values(found)}" for who, found in implementations.items()]
        blocks.setdefault(f"-- {name} {kind} {direction}", []).append(f"{shape:24} " + " | ".join(parts))
    return [line for head, lines in blocks.items() for line in (head, *lines)]


def _grouped(records: list[Record]) -> dict[tuple[str, str, str, str], dict[str, list[Record]]]:
    groups: dict[tuple[str, str, str, str], dict[str, list[Record]]] = {}
    for r in records:
        key = r.name, shape_text(r), r.dtype, r.direction
        groups.setdefault(key, {}).setdefault(r.implementation, []).append(r)
    return groups


def shape_text(record: Record) -> str:
    """The shape in one word per letter; key heads only where they are fewer."""
    shape = record.shape
    keys = "" if shape["G"] == shape["H"] else f" G{shape['G']}"
    return f"B{shape['B']} T{shape['T']} H{shape['H']}{keys} D{shape['D']}"


def _time(records: Iterable[Record]) -> str:
    for r in records:
        if r.milliseconds is not None and r.low is not None and r.high is not None:
            return f" {_short(r.milliseconds)} ms ({_short(r.low)}-{_short(r.high)})"
    return ""


def _values(records: Iterable[Record]) -> str:
    parts = []
    for r in sorted(records, key=lambda r: r.metric == "peak"):
        if r.metric == "time":
            continue
        goal = "" if r.target is None else f" [{r.target} {'PASS' if r.reached else 'short'}]"
        parts.append(f" {r.metric} {_short(r.value)}{f' {r.unit}' if r.unit else ''}{goal}")
    return ",".join(parts)


def _short(value: float) -> str:
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _checks(records: list[Record]) -> list[str]:
    """Passes in one line per family and direction, everything else in full, the worst first."""
    lines = []
    families: dict[tuple[str, str, str], list[Record]] = {}
    for r in records:
        families.setdefault((r.name.split()[0], r.dtype, r.direction), []).append(r)
    for (family, kind, direction), found in families.items():
        found.sort(key=lambda r: -r.value)
        passed = sum(bool(r.reached) for r in found)
        lines.append(
            f"{family} {kind} {direction}: {passed} of {len(found)} within the allowance, "
            f"largest {_short(found[0].value)} of it ({found[0].name})"
        )
        bad = [r for r in found if not r.reached]
        lines += [f"   short: {r.name} {shape_text(r)}: {_short(r.value)}" for r in bad[:WORST]]
    return lines


def verdict(benches: Iterable[Bench]) -> str:
    """One line: how many targets are reached, how many errors there were."""
    benches = list(benches)
    aimed = [r for b in benches for r in b.records if r.target is not None]
    errors = sum(len(b.errors) for b in benches)
    reached = sum(bool(r.reached) for r in aimed)
    return f"targets reached: {reached} of {len(aimed)}; errors: {errors}"
