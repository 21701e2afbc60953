"""Plots of a run's training and of its evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

from zoo.plotting import BLUE, ORANGE, leave_out_the_fall, panels, save_figure, styled

Metrics = list[dict[str, Any]]


@styled
def plot_training(file: Path, metrics: Metrics, title: str, held_out: dict[str, float]) -> list[Path]:
    """Plots bits per byte of training and validation against trained tokens, with held-out results as lines.

    Args:
        file: file of the plot; its suffix is replaced by that of each format.
        metrics: rows from :func:`zoo.files.read_metrics`.
        title: title of the plot.
        held_out: bits per byte by label.

    Returns:
        The files; none if there is nothing to draw.
    """
    train, validation = (_series(metrics, f"{part}/bits_per_byte") for part in ("train", "val"))
    if not len(train) and not len(validation):
        return []
    figure, ((axes,),) = panels()
    axes.plot(*train.T, color=BLUE, alpha=0.4, linewidth=1.2, label="training (each logged step)")
    axes.plot(*validation.T, color=BLUE, marker="o", label=f"validation{_last(validation)}")
    for label, value in held_out.items():
        axes.axhline(value, color=ORANGE, linestyle="--", label=f"{label}: {value:.3f}")
    axes.set(title=title, xlabel="training tokens", ylabel="bits per byte")
    axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
    leave_out_the_fall(axes, np.concatenate([train[:, 1], validation[:, 1], [*held_out.values()]]), 0.98)
    axes.legend()
    return save_figure(file, figure)


def _series(metrics: Metrics, key: str) -> np.ndarray:
    """``(n, 2)`` tokens and finite values; of lines with the same tokens, as a resumed run has them, the last."""
    points = {row["tokens"]: float(row[key]) for row in metrics if isinstance(row.get(key), (int, float))}
    values = np.array([*points.items()], dtype=np.float64).reshape(-1, 2)
    return values[np.isfinite(values[:, 1])]


def _last(series: np.ndarray) -> str:
    return f": {series[-1, 1]:.3f}" if len(series) else ""


@styled
def plot_documents(
    file: Path, samples: list[dict[str, Any]], title: str, total: float, ci95: tuple[float, float] | None
) -> list[Path]:
    """Plots bits per byte of every document against its size, with that of all text and its interval.

    Args:
        file: file of the plot; its suffix is replaced by that of each format.
        samples: lines with ``nats`` and ``bytes`` of each document.
        title: title of the plot.
        total: bits per byte of all text.
        ci95: interval of ``total``.

    Returns:
        The files; none if there is nothing to draw.
    """
    pairs = np.array([(s["bytes"], s["nats"]) for s in samples if s["bytes"]], dtype=np.float64).reshape(-1, 2)
    if not len(pairs):
        return []
    size, bits = pairs[:, 0], pairs[:, 1] / pairs[:, 0] / np.log(2)
    figure, ((axes,),) = panels()
    opacity = float(np.clip(60 / len(size), 0.15, 0.7))
    axes.scatter(size, bits, s=18, color=BLUE, alpha=opacity, linewidths=0, label=f"{len(size)} documents")
    axes.axhline(total, color=ORANGE, label=f"all text: {total:.3f}")
    if ci95 is not None:
        axes.axhspan(*ci95, color=ORANGE, alpha=0.15, linewidth=0, label=f"95 %: {ci95[0]:.3f} to {ci95[1]:.3f}")
    axes.set(title=title, xlabel="document size", ylabel="bits per byte", xscale="log")
    axes.xaxis.set_major_formatter(EngFormatter(unit="B", sep=" "))
    _ticks(axes, size)
    axes.legend()
    return save_figure(file, figure)


def _ticks(axes: Axes, size: np.ndarray) -> None:
    """Ticks at 1, 2, 5 times powers of ten where powers of ten alone would be too few."""
    if size.max() < 1000 * size.min():
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_minor_formatter(NullFormatter())
