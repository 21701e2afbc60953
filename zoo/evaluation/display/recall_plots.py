"""Plots of recall: depth by length with n in each cell, and accuracy against the bytes of the cache."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter

from zoo.plotting import line_style, panels, save_figure, styled

RIGHT, RANK = "answers right", "best among the values"
Records = Sequence[dict[str, Any]]


@styled
def plot_depths(file: Path, records: Records, title: str) -> list[Path]:
    """Plots the accuracy of one run: a heat map of depth by length per variant, or lines by length without depth.

    Args:
        file: file of the plot; its suffix is replaced by that of each format.
        records: records of one task, as in its result file.
        title: title of the plot.

    Returns:
        The files; none if there is nothing to draw.
    """
    asked = [r for r in _shown(records) if "/" not in r["variant"] and r["length"] and r["value"] is not None]
    asked_of = [p for p in (RIGHT, RANK) if any(r["panel"] == p for r in asked)]
    variants = list(dict.fromkeys(r["variant"] for r in asked))
    if not asked_of:
        return []
    deep = [v for v in variants if any(r["depth"] is not None for r in asked if r["variant"] == v)]
    flat = [v for v in variants if v not in deep]
    columns = len(deep) + bool(flat)
    size = (max(5.0, 0.8 + 3.1 * columns), 0.6 + 2.9 * len(asked_of))
    figure, rows = panels(columns, len(asked_of), size)
    for panel, row in zip(asked_of, rows):
        chosen = [r for r in asked if r["panel"] == panel]
        for variant, axes in zip(deep, row):
            _heat_map(axes, [r for r in chosen if r["variant"] == variant and r["depth"] is not None])
            axes.set_title(f"{variant}: {panel}")
        if flat:
            _lines(row[-1], [r for r in chosen if r["variant"] in flat], flat)
            row[-1].set_title(panel)
    figure.suptitle(title)
    return save_figure(file, figure)


def _shown(records: Records) -> list[dict[str, Any]]:
    """Records that are drawn, with their panel: of exact match and accuracy, the latter where a variant has it."""
    several = {(r["task"], r["variant"]) for r in records if r["metric"] == "accuracy"}
    shown = []
    for r in records:
        right = "accuracy" if (r["task"], r["variant"]) in several else "exact_match"
        panel = {right: RIGHT, "rank_accuracy": RANK}.get(r["metric"])
        shown += [r | {"panel": panel}] if panel else []
    return shown


def _heat_map(axes: Axes, records: Records) -> None:
    lengths = sorted({r["length"] for r in records})
    depths = sorted({r["depth"] for r in records})
    axes.grid(False)
    axes.spines[:].set_visible(False)
    if not records:
        axes.text(0.5, 0.5, "one value only", ha="center", va="center", color="gray")
        axes.set(xticks=[], yticks=[])
        return
    grid = np.full((len(depths), len(lengths)), np.nan)
    for r in records:
        row, column = depths.index(r["depth"]), lengths.index(r["length"])
        grid[row, column] = r["value"]
        dark = r["value"] > 0.6
        text = f"{r['value']:.2f}\nn={r['n']}"
        axes.text(column, row, text, ha="center", va="center", fontsize=7, color="white" if dark else "black")
    axes.imshow(grid, vmin=0, vmax=1, cmap="Blues", aspect="auto")
    axes.set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths])
    axes.set_yticks(range(len(depths)), [f"{depth:.0%}" for depth in depths])
    axes.set(xlabel="tokens", ylabel="depth")


def _lines(axes: Axes, records: Records, variants: list[str]) -> None:
    for number, variant in enumerate(variants):
        rows = sorted((r for r in records if r["variant"] == variant), key=lambda r: r["length"])
        if not rows:
            continue
        style = line_style(number)
        color = style["color"]
        lengths = [r["length"] for r in rows]
        axes.plot(lengths, [r["value"] for r in rows], **style, marker="o", label=variant)
        low, high = zip(*(r["ci95"] or (r["value"], r["value"]) for r in rows))
        axes.fill_between(lengths, low, high, color=color, alpha=0.12, linewidth=0)
        if rows[0]["chance"] is not None:
            axes.axhline(rows[0]["chance"], color=color, linestyle=":", linewidth=1)
    lengths = sorted({r["length"] for r in records})
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
    axes.set_xlabel("tokens (dotted: chance)" if any(r["chance"] for r in records) else "tokens")
    axes.set_ylim(-0.03, 1.03)
    axes.legend()


@styled
def plot_costs(file: Path, runs: Sequence[tuple[str, dict[str, Any]]], title: str) -> list[Path]:
    """Plots the accuracy of several runs against the bytes of the cache at that length; a panel per task and variant.

    Args:
        file: file of the plot; its suffix is replaced by that of each format.
        runs: label and content of a result file, of one task, for each run.
        title: title of the plot.

    Returns:
        The files; none if there is nothing to draw.
    """
    points = _cost_points(runs)
    frames = list(dict.fromkeys(point["variant"] for point in points))
    if not frames:
        return []
    figure, (row,) = panels(len(frames), size=(1.2 + 3.6 * len(frames), 3.8), sharey=True)
    for frame, axes in zip(frames, row):
        for number, (label, _) in enumerate(runs):
            mine = [p for p in points if (p["variant"], p["label"]) == (frame, label)]
            _cost_line(axes, sorted(mine, key=lambda p: p["x"]), label, number)
        axes.set(title=frame, xscale="log", xlabel="cache per sequence", ylim=(-0.03, 1.08))
        axes.xaxis.set_major_formatter(EngFormatter(unit="B", sep=" "))
    row[0].set_ylabel(RIGHT)
    row[-1].legend()
    figure.suptitle(title)
    return save_figure(file, figure)


def _cost_line(axes: Axes, points: Sequence[dict[str, Any]], label: str, number: int) -> None:
    """Points of one run, each with its length, joined by a line."""
    if not points:
        return
    axes.plot([p["x"] for p in points], [p["value"] for p in points], **line_style(number), marker="o", label=label)
    for p in points:
        place = (p["x"], p["value"])
        axes.annotate(f"{p['length']:,}", place, (3, 3), textcoords="offset points", fontsize="x-small")


def _cost_points(runs: Sequence[tuple[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    points = []
    for label, content in runs:
        model = content["model"]
        for r in _shown(content["results"]):
            kept = str(r["length"])
            if r["panel"] != RIGHT or r["depth"] is not None or "/" in r["variant"] or kept not in model["kv_bytes@L"]:
                continue
            size = model["state_bytes@L"][kept] + model["kv_bytes@L"][kept]
            points.append(r | {"label": label, "x": max(size, 1)})
    return points
