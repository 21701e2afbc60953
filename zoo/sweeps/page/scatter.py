"""Plots of quality against a cost, with the Pareto front."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from zoo.costs.plan_text import binary, unit
from zoo.plotting import INK, legend_below, palette, styled
from zoo.sweeps.page.analysis import CACHE, FLOPS, SPEED, Analysis, Point
from zoo.sweeps.page.canvas import mark, mark_face, panel
from zoo.sweeps.page.measures import Measure
from zoo.sweeps.page.summary import FRONT

LOSS = "bits per byte"
MARKS = "full: on the Pareto front, which the line joins; empty: dominated; pale: not resolved."
WIDE, TICKS = 4, 5  # a larger ratio of caches is drawn on a logarithmic axis; ticks of an axis, at most


@styled
def pareto(analysis: Analysis, measure: Measure, kind: str) -> Figure | None:
    """Plots quality against a cost."""
    points = analysis.points(measure, kind)
    if len(points) < 2:
        return None
    color = palette(analysis.sweep.arms)
    front = sorted((p for p in points if p.standing.state == FRONT), key=lambda p: (p.cost, p.quality.mean))
    figure, axes = panel(len(points))
    means = [p.quality.mean for p in front]
    axes.plot([p.cost for p in front], means, color=INK, linewidth=1, linestyle="--", alpha=0.6)
    for point in points:
        mark(axes, point.cost, point.quality, color[point.arm], point.standing.state)
    title, name = ("recall", measure.metric) if measure is analysis.measures.recall else (LOSS, LOSS)
    axes.set(title=f"{title} against {TITLES[kind]}", xlabel=cost_label(analysis, kind), ylabel=name)
    if kind == CACHE:
        cache_axis(axes, [p.cost for p in points])
    elif kind == FLOPS:
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: unit(x, "")))
        axes.locator_params(axis="x", nbins=5)
    legend_below(figure, [_key(color[p.arm], p) for p in points])
    return figure


def cache_axis(axes: Axes, costs: Sequence[float]) -> None:
    """Formats an axis of bytes: logarithmic where they are far apart, with ticks at round numbers of bytes."""
    low, high = min(costs), max(costs)
    if low > 0 and high >= WIDE * low:
        axes.set_xscale("log", base=2)
        powers = range(math.ceil(math.log2(low)), math.floor(math.log2(high)) + 1)
        axes.set_xticks([2.0**power for power in powers[:: -(-len(powers) // TICKS)]])
        axes.minorticks_off()
    elif high > low:
        size = 1024.0 ** max(0, math.floor(math.log(high, 1024)))
        ticks = MaxNLocator(TICKS - 1, steps=[1, 2, 5, 10]).tick_values(low / size, high / size)
        axes.set_xticks([tick * size for tick in ticks if low <= tick * size <= high])
    else:
        axes.set_xticks([low])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: binary(x)))


TITLES = {CACHE: "cache", FLOPS: "FLOPs", SPEED: "speed"}


def _key(color: str, point: Point) -> tuple[Line2D, str]:
    face = mark_face(color, point.standing.state)
    return Line2D([], [], color=color, marker="o", linestyle="", markerfacecolor=face), point.arm


def cost_label(analysis: Analysis, kind: str) -> str:
    """Returns the label of a cost's axis."""
    if kind == CACHE:
        return f"cache per sequence at {analysis.cache_length:,} tokens"
    return "forward FLOPs per token" if kind == FLOPS else "training tokens/s"
