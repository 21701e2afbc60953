"""Plots of attention weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize, SymLogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from torch import Tensor

from zoo.costs.cost_curves import CONTEXTS, draw_panel
from zoo.costs.gallery.costs import LayerCosts, panels
from zoo.plotting import ORANGE, save_figure, styled

FUTURE = (0.90, 0.90, 0.92, 1.0)
UNREAD = (1.0, 1.0, 1.0, 1.0)
FLOOR = 1e-4
LEVELS = 19  # few colors make small files; odd, so that 0 is white
POSITIVE = ("YlGnBu", LogNorm(FLOOR, 1, clip=True), "weight (white: not read)")
SIGNED = (
    "RdBu_r",
    SymLogNorm(linthresh=1e-2, linscale=0.5, vmin=-1, vmax=1, base=10),
    "signed weight / largest",
)
COLUMNS = 4
REFERENCE = "softmax"


def scale_of(weights: Tensor) -> tuple[str, Normalize, str]:
    """Returns color map, its scale and its label, diverging where weights are signed."""
    return SIGNED if (weights < 0).any() else POSITIVE


def draw_weights(axes: Axes, weights: Tensor) -> None:
    """Draws one head ``(T, T)``, queries downwards and keys to the right.

    Weights that are not normalized are divided by their maximum.
    """
    colors, norm, _ = scale_of(weights)
    values = weights.double().numpy()
    if values.sum(-1).max() > 1.001 or values.min() < 0:
        values = values / np.abs(values).max()
    image = colormaps[colors].resampled(LEVELS)(norm(values))
    image[values == 0] = UNREAD
    image[np.triu_indices(len(values), 1)] = FUTURE
    axes.imshow(image, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set(visible=True, linewidth=0.5, color="0.6")


@styled
def draw_overview(file: Path, weights: dict[str, Tensor]) -> list[Path]:
    """Plots two heads of every attention, and returns the files."""
    rows = -(-len(weights) // COLUMNS)
    figure: Any = Figure(figsize=(3.35 * COLUMNS, 2.0 * rows + 0.9), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(2.0 * rows, 0.75))
    cells = top.subfigures(rows, COLUMNS, squeeze=False, wspace=0.02, hspace=0.02).flat
    for cell, (name, heads) in zip(cells, weights.items()):
        cell.suptitle(name)
        chosen = heads[:: max(len(heads) // 2, 1)][:2]
        for axes, head in zip(cell.subplots(1, len(chosen), squeeze=False)[0], chosen):
            draw_weights(axes, head)
    _color_bars(bottom)
    return save_figure(file, figure, dpi=100)


@styled
def draw_mixer(file: Path, name: str, weights: Tensor, costs: dict[str, LayerCosts]) -> list[Path]:
    """Plots all heads of one attention, and its costs beside those of softmax attention; returns the files."""
    shown = {key: costs[key] for key in dict.fromkeys((REFERENCE, name)) if key in costs}
    colors = {REFERENCE: "0.55", **({} if name == REFERENCE else {name: ORANGE})}
    figure: Any = Figure(figsize=(13.6, 5.0), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(1.0, 1.0))
    left, right = top.subfigures(1, 2, width_ratios=(len(weights), 0.35))
    for number, (axes, head) in enumerate(zip(left.subplots(1, len(weights), squeeze=False)[0], weights)):
        draw_weights(axes, head)
        axes.set_title(f"head {number}" if len(weights) > 1 else "influence")
        axes.set(xlabel="key", ylabel="query" if number == 0 else "")
    _color_bar(right, right.subplots(), scale_of(weights), "vertical")
    for axes, panel in zip(bottom.subplots(1, 3), panels(shown)):
        draw_panel(axes, panel, CONTEXTS, colors, line=0.09)
    return save_figure(file, figure, dpi=80, colors=64)


def _color_bars(figure: Any) -> None:
    for axes, scale in zip(figure.subplots(1, 2), (POSITIVE, SIGNED)):
        _color_bar(figure, axes, scale, "horizontal")


def _plain(value: float, place: float) -> str:
    """A tick as 0.01: powers of ten would be mathematics, which the style prints as it is written."""
    return f"{value:g}"


def _color_bar(figure: Any, axes: Axes, scale: tuple[str, Normalize, str], orientation: str) -> None:
    colors, norm, label = scale
    axes.set_axis_off()
    aspect = 30 if orientation == "horizontal" else 14
    mappable = ScalarMappable(norm, colormaps[colors].resampled(LEVELS))
    bar = figure.colorbar(
        mappable, ax=axes, orientation=orientation, fraction=0.9, aspect=aspect, format=FuncFormatter(_plain)
    )
    bar.set_label(label)
