"""Pictures of a run and of its evaluation, as PNG files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

from zoo.files import replace_file

TRAIN, VALIDATION, HELD_OUT = "#9ec1e0", "#08519c", "#d94801"
STYLE: Any = {
    "figure.figsize": (7.0, 4.2),
    "figure.dpi": 160,
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
}


def plot_training(file: Path, metrics: list[dict[str, Any]], title: str, held_out: dict[str, float]) -> bool:
    """Bits per byte of training and validation against trained tokens, and held-out results as lines.

    Args:
        metrics: of :func:`zoo.files.read_metrics`. held_out: bits per byte by label.

    Returns:
        Whether there was anything to draw.
    """
    train, validation = (_series(metrics, f"{part}/bits_per_byte") for part in ("train", "val"))
    if not len(train) and not len(validation):
        return False
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(layout="constrained")
        axes.plot(train[:, 0], train[:, 1], color=TRAIN, linewidth=1.2, label="training (each logged step)")
        axes.plot(
            validation[:, 0],
            validation[:, 1],
            color=VALIDATION,
            marker="o",
            markersize=3.5,
            label=f"validation{_last(validation)}",
        )
        for label, value in held_out.items():
            axes.axhline(value, color=HELD_OUT, linestyle="--", linewidth=1.2, label=f"{label}: {value:.3f}")
        axes.set(title=title, xlabel="training tokens", ylabel="bits per byte")
        axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
        _frame(axes, np.concatenate([train[:, 1], validation[:, 1], [*held_out.values()]]))
        axes.legend()
        save_figure(file, figure)
    return True


def _series(metrics: list[dict[str, Any]], key: str) -> np.ndarray:
    """``(n, 2)`` tokens and finite values; of lines with the same tokens, as a resumed run has them, the last."""
    points = {row["tokens"]: float(row[key]) for row in metrics if isinstance(row.get(key), (int, float))}
    values = np.array([*points.items()], dtype=np.float64).reshape(-1, 2)
    return values[np.isfinite(values[:, 1])]


def _last(series: np.ndarray) -> str:
    return f": {series[-1, 1]:.3f}" if len(series) else ""


def _frame(axes: Axes, values: np.ndarray) -> None:
    """Leave the first steep fall out of the picture, so that the differences that matter can be seen."""
    low, high = float(values.min()), float(np.quantile(values, 0.98))
    margin = 0.08 * max(high - low, 0.01 * high, 1e-6)
    axes.set_ylim(low - margin, high + margin)


def plot_documents(
    file: Path, samples: list[dict[str, Any]], title: str, total: float, ci95: tuple[float, float] | None
) -> bool:
    """Bits per byte of every document against its size, with that of all text and its interval.

    Args:
        samples: with ``nats`` and ``bytes`` of each document. total: bits per byte of all. ci95: its interval.

    Returns:
        Whether there was anything to draw.
    """
    pairs = np.array([(s["bytes"], s["nats"]) for s in samples if s["bytes"]], dtype=np.float64).reshape(-1, 2)
    if not len(pairs):
        return False
    size, bits = pairs[:, 0], pairs[:, 1] / pairs[:, 0] / np.log(2)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(layout="constrained")
        opacity = float(np.clip(60 / len(size), 0.15, 0.7))
        axes.scatter(size, bits, s=18, color=VALIDATION, alpha=opacity, linewidths=0, label=f"{len(size)} documents")
        axes.axhline(total, color=HELD_OUT, linewidth=1.4, label=f"all text: {total:.3f}")
        if ci95 is not None:
            axes.axhspan(*ci95, color=HELD_OUT, alpha=0.15, linewidth=0, label=f"95 %: {ci95[0]:.3f} to {ci95[1]:.3f}")
        axes.set(title=title, xlabel="document size", ylabel="bits per byte", xscale="log")
        axes.xaxis.set_major_formatter(EngFormatter(unit="B", sep=" "))
        _ticks(axes, size)
        axes.legend()
        save_figure(file, figure)
    return True


def _ticks(axes: Axes, size: np.ndarray) -> None:
    """Ticks at 1, 2, 5 times powers of ten where powers of ten alone would be too few."""
    if size.max() < 1000 * size.min():
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_minor_formatter(NullFormatter())


def save_figure(file: Path, figure: Any) -> None:
    """Write a figure as PNG, whole or not at all, and close it."""
    try:
        replace_file(file, lambda unfinished: figure.savefig(unfinished, format="png"))
    finally:
        plt.close(figure)
