"""Plots of a sweep: layers as strips, curves of loss, quality by share of softmax or by arm, and against costs.

Each is a small panel with its own title, drawn once: as SVG for the page, and as files beside it.
"""

from __future__ import annotations

import base64
import math
import re
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter, PercentFormatter

from zoo.evaluation.display.recall_plots import RANK, RIGHT
from zoo.plotting import leave_out_the_fall, legend_below, palette, save_figure, shorten, styled, svg_text
from zoo.sweeps.page.analysis import CACHE, FLOPS, SPEED, Analysis
from zoo.sweeps.page.canvas import mark, panel
from zoo.sweeps.page.measures import Measure
from zoo.sweeps.page.scatter import MARKS, cost_label, pareto

CURVES = {"val": "validation", "train": "training"}
KEYS = (("bits_per_byte", "bits per byte"), ("loss", "nats per token"), ("recall_nll", "nats per answer"))
Curve = dict[int, float]


@dataclass(frozen=True)
class Picture:
    """One plot of a report.

    Attributes:
        name: name of its files, without suffix.
        caption: what it shows.
        svg: the plot as an SVG document.
        files: the files of the plot.
    """

    name: str
    caption: str
    svg: str
    files: list[Path]

    @property
    def measured(self) -> bool:
        """Whether it shows measured times."""
        return self.name.endswith(SPEED)

    @property
    def uri(self) -> str:
        """The plot as a data URI."""
        return f"data:image/svg+xml;base64,{base64.b64encode(self.svg.encode()).decode()}"


def draw_all(analysis: Analysis, folder: Path) -> list[Picture]:
    """Draws every plot that the sweep has data for, with its files in ``folder``."""
    return [
        Picture(name, caption, svg_text(figure), save_figure(folder / f"{name}.png", figure))
        for name, caption, figure in _figures(analysis)
    ]


def _figures(analysis: Analysis) -> Iterator[tuple[str, str, Figure]]:
    if (strips := _strips(analysis)) is not None:
        yield "schedules", "Layers of each arm, from the input on the left to the output on the right.", strips
    for part, title in CURVES.items():
        if (figure := _curves(analysis, part, title)) is not None:
            yield f"loss-{part}", f"{title.capitalize()} loss: mean over seeds, and a thin line for each seed.", figure
    headline = [m for m in analysis.measures.headline if m.metric == "bits_per_byte"]
    means = [m for m in analysis.measures.headline if m.parts]
    recall = [m for m in means if m.metric in (RIGHT, RANK)]
    others = {m.metric: [n for n in means if n.metric == m.metric] for m in means if m not in recall}
    variants = [m for m in analysis.measures.all if m.parts and m.variant]
    shares = ("share-loss", "bits per byte", headline), ("share-recall", "recall", recall)
    further = ((f"share-{re.sub(r'[^a-z0-9]+', '-', group.lower())}", group, of) for group, of in others.items())
    for name, title, measures in (*shares, *further, ("share-variants", "recall by variant", variants)):
        if (figure := _quality(analysis, title, measures)) is not None:
            yield name, f"{title.capitalize()}, with 95 % intervals{_chances(measures)}.", figure
    for measure, quality in ((analysis.measures.loss, "loss"), (analysis.measures.recall, "recall")):
        for kind in (CACHE, FLOPS, SPEED):
            if measure is not None and (figure := pareto(analysis, measure, kind)) is not None:
                caption = f"{measure.label} against {cost_label(analysis, kind)}; {MARKS}"
                yield f"pareto-{quality}-{kind}", caption, figure


@styled
def _strips(analysis: Analysis) -> Figure | None:
    arms = [arm for arm in analysis.sweep.arms if analysis.facts[arm].layers]
    if not arms:
        return None
    color = palette(analysis.layers)
    figure, axes = panel(len(color), 3, 0.5 + 0.27 * len(arms))
    for row, arm in enumerate(arms):
        for number, layer in enumerate(analysis.facts[arm].layers):
            axes.barh(row, 0.94, left=number + 0.03, height=0.72, color=color[layer])
    axes.set_yticks(range(len(arms)), [shorten(arm, 28) for arm in arms])
    longest = max(len(analysis.facts[arm].layers) for arm in arms)
    axes.set(xlim=(0, longest), ylim=(len(arms) - 0.5, -0.5), xticks=[])
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    legend_below(figure, [(Patch(color=value), name) for name, value in color.items()], 3)
    return figure


@styled
def _curves(analysis: Analysis, part: str, title: str) -> Figure | None:
    """Mean over seeds of the loss, by training tokens."""
    found = ((unit, _by_arm(analysis, f"{part}/{key}")) for key, unit in KEYS)
    unit, by_arm = next(((unit, curves) for unit, curves in found if curves), ("", {}))
    if not by_arm:
        return None
    color = palette(analysis.sweep.arms)
    figure, axes = panel(len(by_arm))
    ends: list[float] = []
    for arm, seeds in by_arm.items():
        for seed in seeds if len(seeds) > 1 else ():
            axes.plot(list(seed), list(seed.values()), color=color[arm], linewidth=0.6, alpha=0.4)
        mean = _mean(seeds)
        axes.plot(list(mean), list(mean.values()), color=color[arm], marker=".", markersize=3)
        ends += list(mean.values())
    axes.set(title=f"{title}: {unit}", xlabel="training tokens", ylabel=unit)
    axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
    leave_out_the_fall(axes, ends, 0.9)
    legend_below(figure, [(Line2D([], [], color=color[arm]), arm) for arm in by_arm])
    return figure


def _by_arm(analysis: Analysis, key: str) -> dict[str, list[Curve]]:
    return {arm: seeds for arm in analysis.sweep.arms if (seeds := _seeds(analysis, arm, key))}


def _seeds(analysis: Analysis, arm: str, key: str) -> list[Curve]:
    """Finite values by training tokens, of each seed that has any."""
    found = []
    for run in analysis.sweep.finished(arm).values():
        points = {row.get("tokens", row["step"]): row.get(key) for row in run.metrics if key in row}
        curve = {x: float(y) for x, y in points.items() if isinstance(y, (int, float)) and math.isfinite(y)}
        found += [curve] if curve else []
    return found


def _mean(seeds: Sequence[Curve]) -> Curve:
    """Mean where all seeds have a value."""
    shared = [x for x in seeds[0] if all(x in seed for seed in seeds)]
    return {x: statistics.fmean(seed[x] for seed in seeds) for x in shared}


@styled
def _quality(analysis: Analysis, title: str, measures: Sequence[Measure]) -> Figure | None:
    """Measures against the share of softmax layers, where every arm has one of its own; else by the name of the arm."""
    shares = {arm: facts.share for arm, facts in analysis.facts.items() if facts.share is not None}
    arms = [a for a in analysis.sweep.arms if any((a, m) in analysis.summaries for m in measures)]
    measures = [m for m in measures if any((arm, m) in analysis.summaries for arm in arms)]
    if not measures:
        return None
    if len(arms) > 2 and set(arms) <= set(shares) and len({shares[arm] for arm in arms}) == len(arms):
        return _by_share(analysis, title, measures, {arm: shares[arm] for arm in arms})
    return _by_name(analysis, title, measures, arms)


def _by_share(analysis: Analysis, title: str, measures: Sequence[Measure], shares: dict[str, float]) -> Figure:
    color = palette([m.label for m in measures])
    figure, axes = panel(len(measures), 1)
    for number, measure in enumerate(measures):
        arms = sorted((a for a in shares if (a, measure) in analysis.summaries), key=lambda a: shares[a])
        shift = (number - (len(measures) - 1) / 2) * 0.008
        for arm in arms:
            mark(axes, shares[arm] + shift, analysis.summaries[arm, measure], color[measure.label])
        means = [analysis.summaries[arm, measure].mean for arm in arms]
        axes.plot([shares[arm] + shift for arm in arms], means, color=color[measure.label], linewidth=1.2)
    axes.set(title=title, ylabel=title, xlabel="share of layers with full softmax attention")
    axes.xaxis.set_major_formatter(PercentFormatter(1, 0))
    legend_below(figure, [(Line2D([], [], color=color[m.label], marker="o"), m.label) for m in measures], 1)
    return figure


def _by_name(analysis: Analysis, title: str, measures: Sequence[Measure], arms: Sequence[str]) -> Figure:
    """A line per arm, the best in the last measure on top."""
    color, main = palette([m.label for m in measures]), measures[-1]
    means = {arm: found.mean for arm in arms if (found := analysis.summaries.get((arm, main))) is not None}
    sign = -1 if main.higher_is_better else 1
    ordered = [*sorted(means, key=lambda arm: sign * means[arm]), *(arm for arm in arms if arm not in means)]
    figure, axes = panel(len(measures), 1, 0.7 + (0.16 + 0.08 * len(measures)) * len(arms))
    for number, measure in enumerate(measures):
        shift = (number - (len(measures) - 1) / 2) * 0.7 / len(measures)
        for row, arm in enumerate(ordered):
            summary = analysis.summaries.get((arm, measure))
            if summary is not None:
                mark(axes, row + shift, summary, color[measure.label], sideways=True)
    axes.set_yticks(range(len(ordered)), [shorten(arm, 24) for arm in ordered])
    axes.set(title=title, xlabel=title, ylim=(len(ordered) - 0.5, -0.5))
    legend_below(figure, [(Line2D([], [], color=color[m.label], marker="o"), m.label) for m in measures], 1)
    return figure


def _chances(measures: Sequence[Measure]) -> str:
    return "; chance is in the legend" if any(m.chance for m in measures) else ""
