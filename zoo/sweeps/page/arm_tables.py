"""Tables of a report."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from zoo.costs.plan_text import binary, unit
from zoo.paths import command, split_command
from zoo.runs.provenance import layer_pattern
from zoo.sweeps.page.analysis import CACHE, FLOPS, SPEED, Analysis, Point, number
from zoo.sweeps.page.measures import Measure
from zoo.sweeps.page.read import FINISHED, WAITING
from zoo.sweeps.page.summary import DOMINATED, FRONT, NOT_RESOLVED, Comparison, Summary
from zoo.tables import Cell, Table

COSTS = {CACHE: "cache", FLOPS: "FLOPs per token", SPEED: "training tokens/s"}
STANDINGS = (FRONT, DOMINATED, NOT_RESOLVED)


def arms_table(analysis: Analysis) -> Table:
    """Table of the arms, with the first numbers of each."""
    head = ["arm", "layers", "full softmax", "parameters", _cache_head(analysis), "FLOPs per token", "seeds finished"]
    firsts = analysis.measures.first
    head[2:2] = [measure.label for measure in firsts]
    rows = []
    for arm in analysis.sweep.arms:
        facts = analysis.facts[arm]
        cache = analysis.cost(arm, "cache")
        runs = [run for run in analysis.sweep.runs if run.arm == arm]
        done = sum(run.status == FINISHED for run in runs)
        reference = arm == analysis.sweep.reference
        rows.append(
            [
                Cell(arm, "reference" if reference else ""),
                Cell(layer_pattern(list(facts.layers)), strip=facts.layers) if facts.layers else Cell("-"),
                *(value_cell(analysis, arm, measure) for measure in firsts),
                Cell("-" if facts.share is None else f"{facts.share:.0%}"),
                Cell("-" if facts.parameters is None else f"{facts.parameters:,}"),
                Cell("-" if cache is None else binary(cache)),
                Cell("-" if facts.flops is None else unit(facts.flops, "FLOP")),
                Cell(f"{done} of {len(runs)}"),
            ]
        )
    return Table("Arms", head, rows)


def _cache_head(analysis: Analysis) -> str:
    if analysis.cache_length is None:
        return "cache"
    dtypes = dict.fromkeys(facts.dtype for facts in analysis.facts.values() if facts.dtype)
    return f"cache at {analysis.cache_length:,} tokens{f', {chr(44).join(dtypes)}' if dtypes else ''}"


def value_cell(analysis: Analysis, arm: str, measure: Measure) -> Cell:
    """Returns a cell with mean and interval, and the verdict with the paired difference."""
    summary = analysis.summaries.get((arm, measure))
    if summary is None:
        return Cell("-")
    comparison = analysis.comparisons.get((arm, measure))
    return Cell(number(summary.mean), interval(summary), *(verdict(comparison) if comparison else ()))


def interval(summary: Summary) -> str:
    """Formats an interval as ``1.2 to 1.4``, and says what it is over if not seeds."""
    if summary.ci95 is None:
        return f"{summary.n} seed{'s' * (summary.n != 1)}, no interval"
    low, high = map(number, summary.ci95)
    return f"{low} to {high}{'' if summary.over == 'seeds' else ' (samples)'}"


def verdict(comparison: Comparison) -> tuple[str, str, str]:
    """Formats a comparison as ``worse``, ``+0.1`` and ``+0.05 to +0.15``."""
    found = comparison.difference
    reason = "no interval" if found.ci95 is None else f"{signed(found.ci95[0])} to {signed(found.ci95[1])}"
    return comparison.verdict, signed(found.mean), reason


def signed(value: float) -> str:
    """Formats a number with a sign and three significant digits, below 1 with three decimals, or as 0."""
    if abs(value) >= 1000:
        return f"{value:+,.0f}"
    shown = f"{value:+.3g}" if abs(value) >= 1 else f"{value:+.3f}".rstrip("0").rstrip(".")
    return "0" if float(shown) == 0 else shown


def headline_table(analysis: Analysis) -> Table:
    """Table of the headline measures."""
    return matrix(analysis, "Headline numbers", analysis.measures.headline)


def group_tables(analysis: Analysis) -> list[Table]:
    """Tables of recall at each length, over the variants of a task, and of each variant, over the lengths."""
    means = sorted((m for m in analysis.measures.all if m.parts and not m.headline), key=lambda m: m.stem)
    tables = [
        matrix(analysis, "Answers right by length", [m for m in means if m.length]),
        matrix(analysis, "Answers right by variant", [m for m in means if m.variant]),
    ]
    return [table for table in tables if table.rows]


def detail_tables(analysis: Analysis) -> list[Table]:
    """All other measures, a table per result file."""
    rest = [m for m in analysis.measures.all if not m.headline and not m.parts]
    stems = list(dict.fromkeys(m.stem for m in rest))
    return [matrix(analysis, stem, [m for m in rest if m.stem == stem]) for stem in stems]


def matrix(analysis: Analysis, title: str, measures: Sequence[Measure]) -> Table:
    """A row per measure, a column per arm that has one of them."""
    arms = [arm for arm in analysis.sweep.arms if any((arm, m) in analysis.summaries for m in measures)]
    rows = []
    for m in measures:
        first = Cell(m.label, "higher is better" if m.higher_is_better else "lower is better")
        rows.append([first, *(value_cell(analysis, arm, m) for arm in arms)])
    return Table(title, ["measure", *arms], rows)


def failure_table(analysis: Analysis) -> Table:
    """Table of failed runs, with their reasons."""
    rows = [[Cell(run.arm), Cell(str(run.seed)), Cell(run.reason or "no reason given")] for run in analysis.failures]
    return Table("Failed runs", ["arm", "seed", "reason"], rows)


def speed_table(analysis: Analysis) -> Table:
    """Table of training speed, which is measured and differs each time."""
    rows = []
    for arm in analysis.sweep.arms:
        found = analysis.speed.get(arm)
        if found is not None:
            shown = "" if found.ci95 is None else f"{found.ci95[0]:,.0f} to {found.ci95[1]:,.0f}"
            rows.append([Cell(arm), Cell(f"{found.mean:,.0f}", shown), Cell(str(found.n))])
    return Table("Training speed", ["arm", "tokens/s", "seeds"], rows)


def front_table(analysis: Analysis, title: str, kinds: Iterable[str]) -> Table:
    """Table of the arms on the Pareto front of each quality against each cost."""
    rows = []
    for measure in analysis.measures.first:
        for kind in kinds:
            points = analysis.points(measure, kind)
            if len(points) > 1:
                names = {state: [p for p in points if p.standing.state == state] for state in STANDINGS}
                cells = [
                    f"{measure.label} and {COSTS[kind]}",
                    *(_standings(state, names[state]) for state in STANDINGS),
                ]
                rows.append([Cell(cell) for cell in cells])
    return Table(title, ["of", *STANDINGS], rows)


def _standings(state: str, points: Sequence[Point]) -> str:
    """``lightning (by 7to1), softmax (by 7to1, 1to1)``."""
    word = {DOMINATED: "by", NOT_RESOLVED: "from"}.get(state)
    return ", ".join(f"{p.arm} ({word} {', '.join(p.standing.others)})" if word else p.arm for p in points) or "-"


def environment_table(analysis: Analysis) -> Table:
    """Table of the settings that the arms share, software, hardware and source."""
    rows = [[Cell(key), Cell(value)] for key, value in analysis.settings]
    return Table("Settings and environment", ["what", "value"], rows)


def commands(analysis: Analysis) -> list[str]:
    """Returns the commands that repeat the sweep, wherever its folder is, and each arm that has been started."""
    words = [word for word in split_command(analysis.sweep.command) if not word.startswith("hydra.sweep.dir=")]
    seen: dict[str, str] = {}
    for run in (run for run in analysis.sweep.runs if run.status != WAITING):
        seen.setdefault(run.arm, command("python", "train.py", *run.overrides, *_seed(run.overrides, run.seed)))
    return [*([command(*words)] if words else []), *seen.values()]


def _seed(overrides: Sequence[str], seed: int) -> list[str]:
    return [] if any(override.startswith("seed=") for override in overrides) else [f"seed={seed}"]
