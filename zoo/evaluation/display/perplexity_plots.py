"""Plots of loss by context length and by position, of one run or several."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zoo.plotting import legend_below, line_style, panels, save_figure, styled, token_axis

PARTS = {"": "all tokens", "-recall": "tokens that repeat a bigram", "-other": "other tokens"}
PANELS = {"": "all tokens", "-recall": "recall tokens", "-other": "other tokens"}
Runs = Sequence[tuple[str, Sequence[dict[str, Any]]]]


@styled
def plot_context(file: Path, runs: Runs, title: str, trained: int | None = None) -> list[Path]:
    """Plots perplexity of the same targets by context length, and beside it what each length gains over the shortest.

    Args:
        file: file of the plot; its suffix is replaced by that of each format.
        runs: label and records, as in result files, of each run; only those of perplexity_context are drawn.
        title: title of the plot.
        trained: length of training, drawn as a line; None for no line.

    Returns:
        The files; none if there is nothing to draw.
    """
    values = [(label, _by_length(records, "context", "perplexity")) for label, records in runs]
    gains = [(label, _by_length(records, "gain", "bits_per_byte")) for label, records in runs]
    if not any(len(curve) for _, curve in values):
        return []
    count = 1 + any(len(curve) for _, curve in gains)
    figure, (row,) = panels(count, size=(3 + 4 * count, 4.2))
    _draw_runs(row[0], _with_gains(values, gains))
    row[0].set(title="same targets, more context", ylabel="perplexity")
    if count > 1:
        _draw_runs(row[1], gains)
        row[1].axhline(0, color="black", linewidth=0.8)
        row[1].set(title=f"gain over {_shortest(values)} tokens of context", ylabel="bits per byte saved")
    for axes in row:
        _context_axis(axes, values, trained)
    _legend(figure, row[0], 2 * count - 1)
    figure.suptitle(title)
    return save_figure(file, figure)


@styled
def plot_position(file: Path, runs: Runs, title: str) -> list[Path]:
    """Plots loss by position in the document: of all tokens, of those that repeat an earlier bigram, and of all others.

    One run has its three curves in one panel; several runs have a panel for each of the three.

    Args:
        file: file of the plot; its suffix is replaced by that of each format.
        runs: label and records, as in result files, of each run; only those of perplexity_position are drawn.
        title: title of the plot.

    Returns:
        The files; none if there is nothing to draw.
    """
    curves = {part: [(label, _by_position(records, part)) for label, records in runs] for part in PARTS}
    drawn = {part: [(label, curve) for label, curve in found if len(curve)] for part, found in curves.items()}
    drawn = {part: found for part, found in drawn.items() if found}
    if not drawn:
        return []
    several = len(runs) > 1
    count = len(drawn) if several else 1
    figure, (row,) = panels(count, size=(4.2 * count if count > 1 else 7.0, 4.2))
    for panel, (part, found) in enumerate(drawn.items()):
        axes = row[panel if several else 0]
        for number, (label, curve) in enumerate(found):
            style = number if several else list(PARTS).index(part)
            _band(axes, curve, label if several else PARTS[part], style)
        if several:
            axes.set_title(PANELS[part])
    for axes in row:
        _position_axis(axes, drawn)
    row[0].set_ylabel("loss, nats per token")
    _legend(figure, row[0], 3)
    figure.suptitle(title)
    return save_figure(file, figure)


def _by_length(records: Sequence[dict[str, Any]], variant: str, metric: str) -> np.ndarray:
    """``(n, 4)``: length, value and the ends of its interval, NaN where there is none."""
    rows = [
        (record["length"], record["value"], *(record["ci95"] or (math.nan, math.nan)))
        for record in records
        if (record["task"], record["variant"], record["metric"]) == ("perplexity_context", variant, metric)
        and record["value"] is not None
    ]
    return np.array(sorted(rows), dtype=np.float64).reshape(-1, 4)


def _by_position(records: Sequence[dict[str, Any]], part: str) -> np.ndarray:
    """``(n, 6)``: middle of a bucket, loss in nats and the ends of its interval, ends of the bucket."""
    rows = []
    for record in records:
        match = re.fullmatch(rf"(\d+)-(\d+){part}", record["variant"])
        if record["task"] != "perplexity_position" or record["metric"] != "perplexity" or match is None:
            continue
        if not record["value"]:
            continue
        start, stop = map(int, match.groups())
        low, high = record["ci95"] or (math.nan, math.nan)
        rows.append(((start + stop) / 2, *map(math.log, (record["value"], low, high)), start, stop))
    return np.array(sorted(rows), dtype=np.float64).reshape(-1, 6)


def _draw_runs(axes: Any, curves: list[tuple[str, np.ndarray]]) -> None:
    for number, (label, curve) in enumerate(curves):
        if len(curve):
            _band(axes, curve, label, number)


def _band(axes: Any, curve: np.ndarray, label: str, number: int) -> None:
    """A line with its interval: a band, or a bar for a single point."""
    style = line_style(number)
    color = style["color"]
    x, y, low, high = curve[:, :4].T
    axes.plot(x, y, **style, marker="o", label=label)
    if len(curve) == 1 and np.isfinite(low).all():
        axes.vlines(x, low, high, color=color)
    axes.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)


def _with_gains(
    values: list[tuple[str, np.ndarray]], gains: list[tuple[str, np.ndarray]]
) -> list[tuple[str, np.ndarray]]:
    """Curves whose labels say what the longest context gains, in bits per byte."""
    return [
        (f"{label}: {gain[-1, 1]:+.3f} bits/byte at {int(gain[-1, 0]):,}" if len(gain) else label, curve)
        for (label, curve), (_, gain) in zip(values, gains)
    ]


def _legend(figure: Any, axes: Any, columns: int) -> None:
    legend_below(figure, list(zip(*axes.get_legend_handles_labels())), columns, width=100 * columns)


def _shortest(curves: list[tuple[str, np.ndarray]]) -> str:
    """The lengths that gains start from: one number, or all of them if runs differ."""
    return " or ".join(f"{length:,}" for length in sorted({int(curve[0, 0]) for _, curve in curves if len(curve)}))


def _context_axis(axes: Any, curves: list[tuple[str, np.ndarray]], trained: int | None) -> None:
    lengths = sorted({int(length) for _, curve in curves for length in curve[:, 0]})
    token_axis(axes, lengths)
    axes.set_xlabel("tokens of context before the targets")
    if trained is not None:
        axes.axvline(trained, color="black", linestyle=":", linewidth=1, label=f"trained at {trained:,}")


def _position_axis(axes: Any, drawn: dict[str, list[tuple[str, np.ndarray]]]) -> None:
    ends = {int(stop) for found in drawn.values() for _, curve in found for stop in curve[:, 5]}
    starts = {int(start) for found in drawn.values() for _, curve in found for start in curve[:, 4] if start}
    token_axis(axes, sorted(ends | starts))
    axes.set_xlabel("position in the document, tokens")
