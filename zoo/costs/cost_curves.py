"""Curves over context lengths, labeled at their ends."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from zoo.files import replace_file

CONTEXTS = tuple(2**n for n in range(10, 21))
SAME = 0.03  # curves that differ by less share a line
HEIGHT = 5.2  # inches
LINE = 0.033  # height of a line of text, as a part of axes in a figure of that height
CHARACTERS = 30
STYLE: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
}


@dataclass(frozen=True)
class Panel:
    """One set of axes: a value of each name at each context, how it is written, and the base of the ticks."""

    title: str
    ylabel: str
    values: dict[str, list[float]]
    write: Callable[[float], str]
    base: float = 10.0


def draw_curves(file: Path, title: str, panels: Sequence[Panel], contexts: Sequence[int] = CONTEXTS) -> None:
    """The panels side by side, both axes logarithmic, as a PNG."""
    names = list(dict.fromkeys(name for panel in panels for name in panel.values))
    colors = palette(names)
    lines = max(sum(map(_height, merge(panel.values))) for panel in panels)
    height = max(HEIGHT, 0.19 * lines + 1.4)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, len(panels), figsize=(5.9 * len(panels), height), squeeze=False)
        for panel, one in zip(panels, axes[0]):
            draw_panel(one, panel, contexts, colors, LINE * HEIGHT / height)
        figure.suptitle(title, fontsize=12)
        figure.tight_layout(w_pad=2.5)
        save_png(file, figure)


def draw_panel(axes: Axes, panel: Panel, contexts: Sequence[int], colors: dict[str, Any], line: float = LINE) -> None:
    """Curves with a label at the right end of each; names whose curves nearly agree share one."""
    groups = merge(panel.values)
    for names in groups:
        axes.plot(contexts, panel.values[names[0]], color=colors[names[0]], linewidth=1.6)
    axes.set(xscale="log", yscale="log", title=panel.title, xlabel="context (tokens)", ylabel=panel.ylabel)
    axes.xaxis.set_major_locator(LogLocator(base=4))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: tokens(x)))
    axes.margins(y=0.1)
    axes.yaxis.set_major_locator(LogLocator(base=panel.base))
    axes.yaxis.set_minor_locator(NullLocator() if panel.base != 10 else LogLocator(subs="all"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: panel.write(y)))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_formatter(NullFormatter())
    axes.set_xlim(contexts[0], contexts[-1])
    _label_ends(axes, contexts[-1], {names: panel.values[names[0]][-1] for names in groups}, colors, line)


def merge(values: dict[str, list[float]]) -> list[tuple[str, ...]]:
    """Names grouped by curves that agree within 3 %, the highest end first."""
    groups: list[list[str]] = []
    for name, curve in values.items():
        for group in groups:
            if np.allclose(curve, values[group[0]], rtol=SAME, atol=0):
                group.append(name)
                break
        else:
            groups.append([name])
    return [tuple(group) for group in sorted(groups, key=lambda group: -values[group[0]][-1])]


def spread(centers: Sequence[float], heights: Sequence[float], low: float = 0.0, high: float = 1.0) -> list[float]:
    """Positions near ``centers`` (descending) of labels of these heights that do not overlap.

    Labels that touch move together, as a block whose mean displacement is 0 unless an end holds it.
    """
    blocks: list[list[int]] = []
    places: list[float] = []  # upper edge of each block

    def top(block: list[int]) -> float:
        offsets = np.cumsum([0.0, *(heights[i] for i in block[:-1])])
        wanted = np.mean([centers[i] + heights[i] / 2 + offset for i, offset in zip(block, offsets)])
        return float(min(max(wanted, low + sum(heights[i] for i in block)), high))

    for i in range(len(centers)):
        blocks.append([i])
        places.append(top([i]))
        while len(blocks) > 1 and places[-1] > places[-2] - sum(heights[j] for j in blocks[-2]):
            last = blocks.pop()
            places.pop()
            blocks[-1] += last
            places[-1] = top(blocks[-1])
    result = []
    for block, place in zip(blocks, places):
        for i in block:
            result.append(place - heights[i] / 2)
            place -= heights[i]
    return result


def palette(names: Sequence[str]) -> dict[str, Any]:
    """A color for each name, dark enough for text."""
    wheel = [plt.get_cmap("tab10")(i) for i in range(10)] + [plt.get_cmap("Dark2")(i) for i in range(8)]
    return {name: wheel[i % len(wheel)] for i, name in enumerate(names)}


def tokens(value: float) -> str:
    """1k, 64k, 1M."""
    return f"{value / 2**20:g}M" if value >= 2**20 else f"{value / 1024:g}k" if value >= 1024 else f"{value:g}"


def save_png(file: Path, figure: Any, dpi: int = 110, colors: int = 128) -> None:
    """Write and close a figure; a palette instead of full color makes the file a third of the size."""
    from PIL import Image

    def write(unfinished: Path) -> None:
        figure.savefig(unfinished, format="png", dpi=dpi)
        with Image.open(unfinished) as image:
            small = image.convert("RGB").quantize(colors, dither=Image.Dither.NONE)
        small.save(unfinished, format="png", optimize=True)

    try:
        replace_file(file, write)
    finally:
        plt.close(figure)


def _wrapped(names: tuple[str, ...]) -> list[str]:
    return textwrap.wrap(", ".join(names), CHARACTERS, break_long_words=False)


def _height(names: tuple[str, ...]) -> int:
    return len(_wrapped(names))


def _label_ends(axes: Axes, x: float, ends: dict[tuple[str, ...], float], colors: dict[str, Any], line: float) -> None:
    """Text to the right of the axes, joined to the end of its curve by a thin line."""
    to_axes = axes.transScale + axes.transLimits
    centers = [float(to_axes.transform((x, y))[1]) for y in ends.values()]
    heights = [line * (_height(names) + 0.25) for names in ends]
    for (names, y), place in zip(ends.items(), spread(centers, heights, -0.05, 1.05)):
        axes.annotate(
            "\n".join(_wrapped(names)),
            (x, y),
            xytext=(1.06, place),
            textcoords="axes fraction",
            fontsize=8,
            color=colors[names[0]],
            va="center",
            linespacing=1.05,
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colors[names[0]], "linewidth": 0.6, "shrinkA": 1, "shrinkB": 0}
            | {"relpos": (0.0, 0.5)},
        )
