"""What all pictures of a sweep share: size, look, colors, legends and marks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgba
from matplotlib.figure import Figure

from zoo.costs.cost_curves import palette
from zoo.evaluation.display.training_plots import STYLE, plt  # plots selects the backend first
from zoo.sweeps.page.analysis import Analysis
from zoo.sweeps.page.summary import DOMINATED, FRONT

INK = "#1f2328"  # in the SVG: currentColor
SIZE = (4.9, 3.3)  # inches, without the legend
ROW = 0.21  # inches of a line of the legend
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
Key = tuple[Any, str]  # a line or patch of the legend, and its label


def colors(analysis: Analysis) -> dict[str, str]:
    """Color of each arm, hexadecimal."""
    return hexadecimal(analysis.sweep.arms)


def layer_colors(analysis: Analysis) -> dict[str, str]:
    """Color of each kind of layer, hexadecimal."""
    return hexadecimal(sorted({layer for facts in analysis.facts.values() for layer in facts.layers}))


def hexadecimal(names: Sequence[str]) -> dict[str, str]:
    """A color for each name, hexadecimal."""
    return {name: to_hex(color) for name, color in palette(names).items()}


def panel(height: float = SIZE[1], legend: int = 0) -> tuple[Figure, Axes]:
    """Axes of so many inches of height, with room for so many lines of a legend."""
    figure, axes = plt.subplots(figsize=(SIZE[0], height + ROW * legend), layout="constrained")
    return figure, axes


def legend(figure: Figure, keys: Sequence[Key], columns: int = 2) -> None:
    """Below the axes; labels that begin with an underscore would be left out, so a thin space goes before them."""
    labels = [f"\u2009{label}" if label.startswith("_") else label for _, label in keys]
    figure.legend(
        [handle for handle, _ in keys],
        [short(label, 72 // columns) for label in labels],
        loc="outside lower center",
        ncols=columns,
    )


def short(label: str, limit: int) -> str:
    """A label of at most ``limit`` characters."""
    return label if len(label) <= limit else f"{label[: limit - 1]}…"


def rows(count: int, columns: int = 2) -> int:
    """Lines that so many entries of a legend take."""
    return -(-count // columns)


def mark(axes: Axes, place: float, summary: Any, color: str, state: str = FRONT, sideways: bool = False) -> None:
    """Draw a mean and its interval at ``place`` of the other axis; ``sideways`` along the axis x."""
    if summary.ci95 is not None:
        (axes.hlines if sideways else axes.vlines)(place, *summary.ci95, color=color, linewidth=1.2, alpha=0.7)
    x, y = ([summary.mean], [place]) if sideways else ([place], [summary.mean])
    axes.plot(x, y, marker="o", markersize=5, color=color, markerfacecolor=mark_face(color, state), linestyle="")


def mark_face(color: str, state: str) -> Any:
    """Full on the front, empty if dominated, pale between the two."""
    return {FRONT: color, DOMINATED: "none"}.get(state, to_rgba(color, 0.3))
