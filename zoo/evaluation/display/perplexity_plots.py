"""Pictures of loss by context length and by position, of one run or several, as PNG files."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zoo.evaluation.display.training_plots import (  # plots selects the backend first
    HELD_OUT,
    STYLE,
    VALIDATION,
    plt,
    save_figure,
)

COLORS = (VALIDATION, HELD_OUT, "#238b45", "#6a51a3", "#cb181d", "#00838f", "#8c6d31", "#525252")
LINES = ("-", "--", ":")
PARTS = {"": "all tokens", "-recall": "tokens that repeat a bigram", "-other": "other tokens"}
PANELS = {"": "all tokens", "-recall": "recall tokens", "-other": "other tokens"}
Runs = Sequence[tuple[str, Sequence[dict[str, Any]]]]


def plot_context(file: Path, runs: Runs, title: str, trained: int | None = None) -> bool:
    """Perplexity of the same targets by context length, and beside it what each length gains over the shortest.

    Args:
        runs: label and records, as in result files, of each run; only those of perplexity_context are drawn.
        trained: length of training, drawn as a line where it is given.

    Returns:
        Whether there was anything to draw.
    """
    values = [(label, _by_length(records, "context", "perplexity")) for label, records in runs]
    gains = [(label, _by_length(records, "gain", "bits_per_byte")) for label, records in runs]
    if not any(len(curve) for _, curve in values):
        return False
    panels = 1 + any(len(curve) for _, curve in gains)
    with plt.rc_context(STYLE):
        figure, row = plt.subplots(1, panels, squeeze=False, layout="constrained", figsize=(3 + 4 * panels, 4.2))
        left = row[0, 0]
        _draw_runs(left, _with_gains(values, gains))
        left.set(title="same targets, more context", ylabel="perplexity")
        if panels > 1:
            _draw_runs(row[0, 1], gains)
            row[0, 1].axhline(0, color="black", linewidth=0.8)
            row[0, 1].set(title=f"gain over {_shortest(values)} tokens of context", ylabel="bits per byte saved")
        for axes in row[0]:
            _context_axis(axes, values, trained)
        _legend(figure, left, 2 * panels - 1)
        figure.suptitle(title)
        save_figure(file, figure)
    return True


def plot_position(file: Path, runs: Runs, title: str) -> bool:
    """Loss by position in the document: of all tokens, of those that repeat an earlier bigram, and of the rest.

    One run has its three curves in one frame; several runs have a frame for each of the three.

    Args:
        runs: label and records, as in result files, of each run; only those of perplexity_position are drawn.

    Returns:
        Whether there was anything to draw.
    """
    curves = {part: [(label, _by_position(records, part)) for label, records in runs] for part in PARTS}
    drawn = {part: [(label, curve) for label, curve in found if len(curve)] for part, found in curves.items()}
    drawn = {part: found for part, found in drawn.items() if found}
    if not drawn:
        return False
    several = len(runs) > 1
    panels = len(drawn) if several else 1
    with plt.rc_context(STYLE):
        width = 4.2 * panels if panels > 1 else 7.0
        figure, row = plt.subplots(1, panels, squeeze=False, layout="constrained", figsize=(width, 4.2))
        for panel, (part, found) in enumerate(drawn.items()):
            axes = row[0, panel if several else 0]
            for number, (label, curve) in enumerate(found):
                style = number if several else list(PARTS).index(part)
                _band(axes, curve, label if several else PARTS[part], style)
            if several:
                axes.set_title(PANELS[part])
        for axes in row[0]:
            _position_axis(axes, drawn)
        row[0, 0].set_ylabel("loss, nats per token")
        _legend(figure, row[0, 0], 3)
        figure.suptitle(title)
        save_figure(file, figure)
    return True


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
    color = COLORS[number % len(COLORS)]
    line = LINES[number // len(COLORS) % len(LINES)]
    x, y, low, high = curve[:, :4].T
    axes.plot(x, y, color=color, linestyle=line, marker="o", markersize=4, linewidth=1.5, label=label)
    if len(curve) == 1 and np.isfinite(low).all():
        axes.vlines(x, low, high, color=color, linewidth=1.5)
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
    """One legend below the frames, where it hides nothing."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(columns, len(labels)))


def _shortest(curves: list[tuple[str, np.ndarray]]) -> str:
    """The lengths that gains start from: one number, or all of them if runs differ."""
    return " or ".join(f"{length:,}" for length in sorted({int(curve[0, 0]) for _, curve in curves if len(curve)}))


def _context_axis(axes: Any, curves: list[tuple[str, np.ndarray]], trained: int | None) -> None:
    lengths = sorted({int(length) for _, curve in curves for length in curve[:, 0]})
    _log2(axes, lengths)
    axes.set_xlabel("tokens of context before the targets")
    if trained is not None:
        axes.axvline(trained, color="black", linestyle=":", linewidth=1, label=f"trained at {trained:,}")


def _position_axis(axes: Any, drawn: dict[str, list[tuple[str, np.ndarray]]]) -> None:
    ends = {int(stop) for found in drawn.values() for _, curve in found for stop in curve[:, 5]}
    starts = {int(start) for found in drawn.values() for _, curve in found for start in curve[:, 4] if start}
    _log2(axes, sorted(ends | starts))
    axes.set_xlabel("position in the document, tokens")


def _log2(axes: Any, ticks: list[int]) -> None:
    """A logarithmic axis with a tick at each number or, where they are many, at some of them and the last."""
    axes.set_xscale("log", base=2)
    shown = ticks[:: len(ticks) // -8]
    axes.set_xticks(shown, [f"{tick // 1024}k" if tick % 1024 == 0 else str(tick) for tick in shown])
    axes.minorticks_off()
    if len(ticks) == 1:
        axes.set_xlim(ticks[0] / 4, ticks[0] * 2)
