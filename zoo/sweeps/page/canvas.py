"""Elements that the plots of a sweep share: the size of a panel, and marks with their intervals."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from zoo.plotting import panels
from zoo.sweeps.page.summary import DOMINATED, FRONT

SIZE = (4.9, 3.3)  # inches, without the legend
ROW = 0.21  # inches of a line of the legend


def panel(entries: int, columns: int = 2, height: float = SIZE[1]) -> tuple[Figure, Axes]:
    """Returns axes with room below for the entries of a legend in columns."""
    figure, axes = panels(size=(SIZE[0], height + ROW * -(-entries // columns)))
    return figure, axes[0, 0]


def mark(axes: Axes, place: float, summary: Any, color: str, state: str = FRONT, sideways: bool = False) -> None:
    """Draws a mean and its interval at ``place`` of the other axis; with ``sideways`` along the x axis."""
    if summary.ci95 is not None:
        (axes.hlines if sideways else axes.vlines)(place, *summary.ci95, color=color, linewidth=1.2, alpha=0.7)
    x, y = ([summary.mean], [place]) if sideways else ([place], [summary.mean])
    axes.plot(x, y, marker="o", markersize=5, color=color, markerfacecolor=mark_face(color, state), linestyle="")


def mark_face(color: str, state: str) -> Any:
    """Color of a mark: full on the front, empty if dominated, pale if not resolved."""
    return {FRONT: color, DOMINATED: "none"}.get(state, to_rgba(color, 0.3))
