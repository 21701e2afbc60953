"""Pictures of a sweep: layers as coloured strips, curves of loss, quality by share of softmax and against costs.

Each is a small panel with a title of its own, drawn once and kept as SVG for the page and as PNG for Markdown. Lines
and text of the SVG take the colour of the page around them.
"""

from __future__ import annotations

import io
import math
import re
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter, FuncFormatter, PercentFormatter

from zoo.ablation.report.analysis import CACHE, FLOPS, SPEED, Analysis
from zoo.ablation.report.measures import PERPLEXITY, Measure
from zoo.evaluation.plots import STYLE, plt  # plots selects the backend first
from zoo.planning.curves import palette, save_png
from zoo.planning.report import binary, unit

INK = "#1f2328"  # in the SVG: currentColor
SIZE = (4.9, 3.3)  # inches, without the legend
ROW = 0.21  # inches of a line of the legend
CURVES = {"val": "validation", "train": "training"}
KEYS = (("bits_per_byte", "bits per byte"), ("loss", "nats per token"), ("recall_nll", "nats per answer"))
LOOK: Any = STYLE | {
    "font.size": 9,
    "axes.titlesize": 10,
    "legend.fontsize": 8,
    "text.parse_math": False,
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    **dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color"), INK
    ),
    "grid.color": INK,
    "grid.alpha": 0.15,
}
Curve = dict[int, float]
Key = tuple[Any, str]  # a line or patch of the legend, and its label


@dataclass(frozen=True)
class Picture:
    """One picture: ``name`` of its file, ``caption``, SVG text, and whether it shows what was measured by the clock."""

    name: str
    caption: str
    svg: str
    measured: bool = False


def draw_all(analysis: Analysis, folder: Path) -> list[Picture]:
    """Every picture that the sweep has something for; PNG files go to ``folder``."""
    drawn = []
    for name, caption, figure in _figures(analysis):
        with plt.rc_context(LOOK | {"svg.hashsalt": name}):
            svg = _svg(figure, name)
            figure.set_layout_engine("none")  # as it is now: laying out takes a third of the time
            save_png(folder / f"{name}.png", figure, dpi=130)
        drawn.append(Picture(name, caption, svg, measured=name.endswith(SPEED)))
    return drawn


def _figures(analysis: Analysis) -> Iterator[tuple[str, str, Figure]]:
    if (strips := _strips(analysis)) is not None:
        yield "schedules", "Layers of each arm, from the input on the left to the output on the right.", strips
    for part, title in CURVES.items():
        if (figure := _curves(analysis, part, title)) is not None:
            yield f"loss-{part}", f"{title.capitalize()} loss: mean over seeds, and a thin line for each seed.", figure
    headline = [m for m in analysis.measures.headline if m.metric == "bits_per_byte"]
    recall = [m for m in analysis.measures.headline if m.parts and m.task not in PERPLEXITY]
    variants = [m for m in analysis.measures.all if m.parts and m.variant]
    shares = ("share-loss", "bits per byte", headline), ("share-recall", "recall", recall)
    for name, title, measures in (*shares, ("share-variants", "recall by variant", variants)):
        if (figure := _shares(analysis, title, measures)) is not None:
            yield name, f"{title.capitalize()}, with 95 % intervals{_chances(measures)}.", figure
    for measure, quality in ((analysis.measures.loss, "loss"), (analysis.measures.recall, "recall")):
        for kind in (CACHE, FLOPS, SPEED):
            if measure is not None and (figure := _pareto(analysis, measure, kind)) is not None:
                caption = f"{measure.label} against {_cost_label(analysis, kind)}; the line joins the Pareto front."
                yield f"pareto-{quality}-{kind}", caption, figure


def colours(analysis: Analysis) -> dict[str, str]:
    """Colour of each arm, hexadecimal."""
    return _hexadecimal(analysis.sweep.arms)


def layer_colours(analysis: Analysis) -> dict[str, str]:
    """Colour of each kind of layer, hexadecimal."""
    return _hexadecimal(sorted({layer for facts in analysis.facts.values() for layer in facts.layers}))


def _hexadecimal(names: Sequence[str]) -> dict[str, str]:
    from matplotlib.colors import to_hex

    return {name: to_hex(colour) for name, colour in palette(names).items()}


def _panel(height: float = SIZE[1], legend: int = 0) -> tuple[Figure, Axes]:
    figure, axes = plt.subplots(figsize=(SIZE[0], height + ROW * legend), layout="constrained")
    return figure, axes


def _legend(figure: Figure, keys: Sequence[Key], columns: int = 2) -> None:
    """Below the axes; labels that begin with an underscore would be left out, so a thin space goes before them."""
    labels = [f"\u2009{label}" if label.startswith("_") else label for _, label in keys]
    figure.legend(
        [handle for handle, _ in keys],
        [_short(label, 72 // columns) for label in labels],
        loc="outside lower center",
        ncols=columns,
    )


def _short(label: str, limit: int) -> str:
    return label if len(label) <= limit else f"{label[: limit - 1]}…"


def _rows(count: int, columns: int = 2) -> int:
    return -(-count // columns)


def _strips(analysis: Analysis) -> Figure | None:
    arms = [arm for arm in analysis.sweep.arms if analysis.facts[arm].layers]
    if not arms:
        return None
    colour = layer_colours(analysis)
    with plt.rc_context(LOOK | {"axes.grid": False}):
        figure, axes = _panel(0.5 + 0.27 * len(arms), _rows(len(colour), 3))
        for row, arm in enumerate(arms):
            for number, layer in enumerate(analysis.facts[arm].layers):
                axes.barh(row, 0.94, left=number + 0.03, height=0.72, color=colour[layer])
        axes.set_yticks(range(len(arms)), [_short(arm, 28) for arm in arms])
        axes.set(
            xlim=(0, max(len(analysis.facts[arm].layers) for arm in arms)), ylim=(len(arms) - 0.5, -0.5), xticks=[]
        )
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        _legend(figure, [(Patch(color=value), name) for name, value in colour.items()], 3)
    return figure


def _curves(analysis: Analysis, part: str, title: str) -> Figure | None:
    """Mean over seeds of the loss, by training tokens."""
    found = ((unit, _by_arm(analysis, f"{part}/{key}")) for key, unit in KEYS)
    unit, by_arm = next(((unit, curves) for unit, curves in found if curves), ("", {}))
    if not by_arm:
        return None
    colour = colours(analysis)
    with plt.rc_context(LOOK):
        figure, axes = _panel(legend=_rows(len(by_arm)))
        ends: list[float] = []
        for arm, seeds in by_arm.items():
            for seed in seeds if len(seeds) > 1 else ():
                axes.plot(list(seed), list(seed.values()), color=colour[arm], linewidth=0.6, alpha=0.4)
            mean = _mean(seeds)
            axes.plot(list(mean), list(mean.values()), color=colour[arm], linewidth=1.6, marker=".", markersize=3)
            ends += list(mean.values())
        axes.set(title=f"{title}: {unit}", xlabel="training tokens", ylabel=unit)
        axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
        _leave_out_the_fall(axes, ends)
        _legend(figure, [(Line2D([], [], color=colour[arm]), arm) for arm in by_arm])
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


def _leave_out_the_fall(axes: Axes, values: Sequence[float]) -> None:
    """The first steep fall would hide the differences that matter."""
    if len(values) < 8:
        return
    ordered = sorted(values)
    low, high = ordered[0], ordered[int(0.9 * (len(ordered) - 1))]
    if high > low:
        axes.set_ylim(low - 0.08 * (high - low), high + 0.08 * (high - low))


def _shares(analysis: Analysis, title: str, measures: Sequence[Measure]) -> Figure | None:
    """Measures against the share of softmax layers; by arm where the arms do not differ in it."""
    shares = {arm: facts.share for arm, facts in analysis.facts.items() if facts.share is not None}
    measures = [m for m in measures if any((arm, m) in analysis.summaries for arm in shares)]
    if not measures:
        return None
    by_share = len(set(shares.values())) > 1
    places = shares if by_share else {arm: float(number) for number, arm in enumerate(shares)}
    colour = _hexadecimal([m.label for m in measures])
    with plt.rc_context(LOOK):
        figure, axes = _panel(legend=len(measures))
        for number, measure in enumerate(measures):
            arms = sorted((a for a in shares if (a, measure) in analysis.summaries), key=lambda a: places[a])
            line = "-" if by_share and len(set(shares.values())) == len(shares) else ""
            shift = (number - (len(measures) - 1) / 2) * (0.008 if by_share else 0.08)
            for arm in arms:
                _point(axes, places[arm] + shift, analysis.summaries[arm, measure], colour[measure.label])
            means = [analysis.summaries[arm, measure].mean for arm in arms]
            xs = [places[arm] + shift for arm in arms]
            axes.plot(xs, means, linestyle=line, color=colour[measure.label], linewidth=1.2)
        axes.set(title=title, ylabel=title, xlabel="share of layers with full softmax attention" if by_share else "")
        if by_share:
            axes.xaxis.set_major_formatter(PercentFormatter(1, 0))
        else:
            axes.set_xticks(range(len(shares)), [_short(arm, 18) for arm in shares], rotation=30, ha="right")
        _legend(figure, [(Line2D([], [], color=colour[m.label], marker="o"), m.label) for m in measures], 1)
    return figure


def _point(axes: Axes, x: float, summary: Any, colour: str, hollow: bool = False) -> None:
    if summary.ci95 is not None:
        axes.vlines(x, *summary.ci95, color=colour, linewidth=1.2, alpha=0.7)
    face = "none" if hollow else colour
    axes.plot([x], [summary.mean], marker="o", markersize=5, color=colour, markerfacecolor=face, linestyle="")


def _chances(measures: Sequence[Measure]) -> str:
    return "; chance is in the legend" if any(m.chance for m in measures) else ""


def _pareto(analysis: Analysis, measure: Measure, kind: str) -> Figure | None:
    """Quality against a cost; hollow points are dominated."""
    points = analysis.points(measure, kind)
    if len(points) < 2:
        return None
    colour = colours(analysis)
    front = sorted((p for p in points if p.front), key=lambda p: (p.cost, p.quality.mean))
    with plt.rc_context(LOOK):
        figure, axes = _panel(legend=_rows(len(points)))
        axes.plot(
            [p.cost for p in front], [p.quality.mean for p in front], color=INK, linewidth=1, linestyle="--", alpha=0.6
        )
        for point in points:
            _point(axes, point.cost, point.quality, colour[point.arm], hollow=not point.front)
        name = "recall" if measure is analysis.measures.recall else "bits per byte"
        axes.set(
            title=f"{name} against {TITLES[kind]}", xlabel=_cost_label(analysis, kind), ylabel=_short(measure.label, 36)
        )
        if kind == CACHE and min(p.cost for p in points) > 0:
            axes.set_xscale("log")
            axes.minorticks_off()
            axes.set_xticks(sorted({p.cost for p in (min(points, key=_cost), max(points, key=_cost))}))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: binary(x)))
        elif kind == FLOPS:
            axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: unit(x, "")))
            axes.locator_params(axis="x", nbins=5)
        keys = [_pareto_key(colour[p.arm], p.front, p.arm) for p in points]
        _legend(figure, keys)
    return figure


def _cost(point: Any) -> float:
    return point.cost


TITLES = {CACHE: "cache", FLOPS: "FLOPs", SPEED: "speed"}


def _pareto_key(colour: str, front: bool, arm: str) -> Key:
    face = colour if front else "none"
    return Line2D([], [], color=colour, marker="o", linestyle="", markerfacecolor=face), arm


def _cost_label(analysis: Analysis, kind: str) -> str:
    if kind == CACHE:
        return f"cache per sequence at {analysis.cache_length:,} tokens"
    return "forward FLOPs per token" if kind == FLOPS else "training tokens/s"


def _svg(figure: Figure, name: str) -> str:
    """The picture as an element to stand in a page: ids of its own, no metadata, no prolog, the page's font and ink."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    text = buffer.getvalue()
    text = re.sub(r"<(metadata|style)\b.*?</\1>\s*", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" role="img">', text, count=1)
    return re.sub(r"<[^>]*>", lambda tag: _own(tag[0], name), text).strip()


def _own(tag: str, name: str) -> str:
    tag = re.sub(r'\bid="', f'id="{name}-', tag)
    tag = re.sub(r'(?:xlink:)?href="#', f'href="#{name}-', tag).replace("url(#", f"url(#{name}-")
    return re.sub(r" font-family: [^;]*;", "", tag).replace(INK, "currentColor")
