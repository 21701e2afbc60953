"""Plots of curves over context lengths, labeled at their ends."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from zoo.plotting import label_ends, palette, panels, save_figure, styled, tokens

CONTEXTS = tuple(2**n for n in range(10, 21))
SAME = 0.03  # curves that differ by less share a line
HEIGHT = 5.2  # inches
LINE = 0.033  # height of a line of text, as a part of axes in a figure of that height
CHARACTERS = 30


@dataclass(frozen=True)
class Panel:
    """One set of axes.

    Attributes:
        title: title of the axes.
        ylabel: label of the y axis.
        values: values of each name, one per context.
        write: formats a value.
        base: base of the logarithmic ticks.
    """

    title: str
    ylabel: str
    values: dict[str, list[float]]
    write: Callable[[float], str]
    base: float = 10.0


@styled
def draw_curves(file: Path, title: str, shown: Sequence[Panel], contexts: Sequence[int] = CONTEXTS) -> list[Path]:
    """Draws panels side by side, both axes logarithmic, and returns the files."""
    colors = palette(list(dict.fromkeys(name for panel in shown for name in panel.values)))
    lines = max(sum(_label(names).count("\n") + 1 for names in merge(panel.values)) for panel in shown)
    height = max(HEIGHT, 0.19 * lines + 1.4)
    figure, axes = panels(len(shown), size=(5.9 * len(shown), height))
    for panel, one in zip(shown, axes[0]):
        draw_panel(one, panel, contexts, colors, LINE * HEIGHT / height)
    figure.suptitle(title)
    return save_figure(file, figure, dpi=110)


def draw_panel(
    axes: Axes, panel: Panel, contexts: Sequence[int], colors: Mapping[str, str], line: float = LINE
) -> None:
    """Draws curves with a label at the right end of each; names whose curves nearly agree share one."""
    groups = merge(panel.values)
    for names in groups:
        axes.plot(contexts, panel.values[names[0]], color=colors[names[0]])
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
    ends = [(_label(names), panel.values[names[0]][-1], colors[names[0]]) for names in groups]
    label_ends(axes, contexts[-1], ends, line)


def merge(values: dict[str, list[float]]) -> list[tuple[str, ...]]:
    """Groups names by curves that agree within 3 %, the highest end first."""
    groups: list[list[str]] = []
    for name, curve in values.items():
        for group in groups:
            if np.allclose(curve, values[group[0]], rtol=SAME, atol=0):
                group.append(name)
                break
        else:
            groups.append([name])
    return [tuple(group) for group in sorted(groups, key=lambda group: -values[group[0]][-1])]


def _label(names: Sequence[str]) -> str:
    return "\n".join(textwrap.wrap(", ".join(names), CHARACTERS, break_long_words=False))
