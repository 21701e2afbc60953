"""Runs side by side: tables of held-out bits per byte, parameters and cache, and a picture of their curves.

    python scripts/compare.py RUN_DIR ... [OPTION=VALUE ...]

Each run must have been evaluated (python eval.py run=RUN_DIR task=perplexity). Runs on the same data are compared with
the first of them by all evaluations that they share; a star is a difference that the 95 % interval resolves.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from pydantic import BaseModel, ValidationError

import zoo
from zoo.config import load_run_config
from zoo.evaluation.compare import Compared, compare_runs, comparison_notes, comparison_table
from zoo.evaluation.program import folder_label
from zoo.evaluation.results.records import read_held_out
from zoo.evaluation.tasks.result_kind import read_evaluation
from zoo.files import read_metrics
from zoo.paths import expand
from zoo.plotting import palette, panels, picture_formats, save_figure, styled
from zoo.runs.run_folder import RESULTS
from zoo.schema.arguments import Arguments, InputFile, OutputFile, PictureFile, read_arguments
from zoo.schema.base import PictureFormats, Positive, option
from zoo.tables import Cell, Table, titled_markdown, write_tables

RATE = "train/tokens_per_second"


class Options(Arguments):
    """Options of the comparison."""

    out: OutputFile | None = option(
        "file of the tables in Markdown, beside which is one in LaTeX that ends in .tex; empty: they are only printed",
        default=None,
    )
    speed: InputFile | None = option("file that scripts/bench_models.py wrote; empty: speeds of training", default=None)
    picture: PictureFile | None = option("file of the picture, whose ending is its format; empty: none", default=None)
    formats: PictureFormats = option("of the picture, as [svg,pdf], beside that of picture=", default=[])


class Speed(BaseModel):
    """Speed of one model of scripts/bench_models.py at one context."""

    attention: str
    context: Positive
    tokens_per_second: float


class Speeds(BaseModel):
    """Content of a file of scripts/bench_models.py."""

    rows: list[Speed]


def describe(folder: Path) -> dict[str, Any]:
    """Facts of one evaluated run, and its evaluations."""
    config = load_run_config(folder)
    result, record = read_held_out(folder)
    evaluations = [read_evaluation(file) for file in sorted((folder / RESULTS).glob("*.json"))]
    decoder = zoo.load(folder)
    pattern = config.schedule.pattern
    cost = decoder.cost(65536)
    short = decoder.cost(4096)
    metrics = read_metrics(folder / "metrics.jsonl")
    return {
        "data": config.data.name,
        "attention": config.attention if pattern == "attention" else pattern,
        "parameters": cost.parameters,
        "bits": record.value,
        "evaluations": evaluations,
        "held_out": [evaluation for evaluation in evaluations if evaluation.results == result],
        "ci95": record.ci95,
        "tokens": result.model.train_tokens,
        "cache": cost.cache_bytes,
        "short_cache": short.cache_bytes,
        "rate": statistics.median([row[RATE] for row in metrics if RATE in row] or [math.nan]),
        "curve": [(row["tokens"], row["val/bits_per_byte"]) for row in metrics if "val/bits_per_byte" in row],
    }


def read_speed(file: str | None) -> list[Speed]:
    """Reads a file of scripts/bench_models.py; no rows if there is no file.

    Raises:
        ValueError: if the file is another one.
    """
    try:
        return Speeds.model_validate_json(Path(file).read_bytes()).rows if file else []
    except ValidationError as error:
        raise ValueError(f"speed={file}: expected the JSON that scripts/bench_models.py writes.") from error


def by_data(runs: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The runs of each data set, in the order in which they were given."""
    groups = defaultdict(list)
    for run in runs:
        groups[run["data"]].append(run)
    return list(groups.values())


def tables(runs: list[dict[str, Any]], speed: list[Speed]) -> list[Table]:
    """Returns a table for each data set, the best run first."""
    rates = {(row.attention, row.context): row.tokens_per_second for row in speed}
    contexts = sorted({row.context for row in speed})
    speeds = [f"tokens/s at {context:,}" for context in contexts] or ["tokens/s in training"]
    found = []
    for arms in by_data(runs):
        paired = [f"difference from {arms[0]['label']} (95 %, paired)"] if len(arms) > 1 else []
        heads = ["attention", "parameters", "held-out bits per byte (95 %)", *paired, "cache at 4k", "at 64k, bf16"]
        rows, differences = [], held_out_differences(arms)
        for run in sorted(arms, key=lambda r: r["bits"]):
            cells = [Cell(run["attention"], code=True), Cell(f"{run['parameters']:,}")]
            cells += [Cell(f"{run['bits']:.3f}", interval(run["ci95"]))]
            cells += [differences.get(run["label"], Cell("-")) for _ in paired]
            cells += [Cell(f"{run[cache] / 2**20:.2f} MiB") for cache in ("short_cache", "cache")]
            known = [rates.get((run["attention"], context), math.nan) for context in contexts] or [run["rate"]]
            rows.append([*cells, *(Cell("-" if math.isnan(rate) else f"{rate:,.0f}") for rate in known)])
        found.append(Table(f"{arms[0]['data']}, {arms[0]['tokens']:,} training tokens", [*heads, *speeds], rows))
    return found


def held_out_differences(arms: list[dict[str, Any]]) -> dict[str, Cell]:
    """How far the held-out bits per byte of each run are from those of the first, where their texts are the same."""
    rows = compare_runs([(arm["label"], arm["held_out"]) for arm in arms])
    differences: list[list[dict[str, Any]]] = [r["differences"] for r in rows if r["metric"] == "bits_per_byte"]
    return {
        other["run"]: Cell(f"{other['value']:+.3f}{' *' if other['resolved'] else ''}", interval(other["ci95"]))
        for other in (differences[0] if differences else [])  # the first record is of all text
        if other["value"] is not None
    }


def shared_evaluations(runs: list[dict[str, Any]]) -> Iterator[tuple[Table, list[str]]]:
    """For each data set with several runs the main numbers that all have, and why some cannot be compared."""
    for arms in by_data(runs):
        evaluations: list[Compared] = [(arm["label"], arm["evaluations"]) for arm in arms]
        if len(arms) > 1:
            table = comparison_table(evaluations, compare_runs(evaluations))
            yield replace(table, title=f"{arms[0]['data']}, evaluations"), comparison_notes(evaluations)


def interval(ci95: list[float] | None) -> str:
    """Formats the interval, which needs more than one document."""
    return "one document" if ci95 is None else f"{ci95[0]:.3f} to {ci95[1]:.3f}"


@styled
def picture(file: Path, runs: list[dict[str, Any]], speed: list[Speed]) -> list[Path]:
    """Plots validation curves by data set and training speed against context, and returns the files."""
    sets = list(dict.fromkeys(run["data"] for run in runs))
    color = palette(list(dict.fromkeys(run["attention"] for run in runs)))
    count = len(sets) + bool(speed)
    figure, (row,) = panels(count, size=(4.4 * count, 3.7))
    for axes, data in zip(row, sets):
        for run in (r for r in runs if r["data"] == data and r["curve"]):
            x, y = zip(*run["curve"])
            name = run["attention"]
            axes.plot([v / 1e3 for v in x], y, marker="o", markersize=3, color=color[name], label=name)
        axes.set(title=f"{data}: validation", xlabel="thousand training tokens", ylabel="bits per byte")
    if speed:
        _draw_speed(row[-1], speed, color)
    row[0].legend()
    return save_figure(file, figure)


def _draw_speed(axes: Axes, speed: list[Speed], color: dict[str, str]) -> None:
    for name in color:
        points = [(row.context, row.tokens_per_second) for row in speed if row.attention == name]
        axes.plot([x for x, _ in points], [y for _, y in points], marker="o", markersize=3, color=color[name])
    contexts = sorted({row.context for row in speed})
    axes.set(title="training speed", xlabel="context", ylabel="tokens per second", xscale="log")
    axes.set_xticks(contexts, [f"{c:,}" for c in contexts])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)


def main(arguments: list[str]) -> None:
    """Reads the runs, prints and writes the tables, and draws the plot."""
    chosen, folders = read_arguments(Options, arguments, __doc__, rest="RUN_DIR")
    if not folders:
        raise ValueError("no run: expected the folders that train.py wrote.")
    speed = read_speed(chosen.speed)
    labels = (folder_label(expand(folder), folders) for folder in folders)
    runs = [describe(expand(folder)) | {"label": label} for folder, label in zip(folders, labels)]
    shared = list(shared_evaluations(runs))
    found = [*tables(runs, speed), *(table for table, _ in shared)]
    print(titled_markdown(found), *(f"note: {note}" for _, notes in shared for note in notes), sep="\n")
    if chosen.out:
        write_tables(Path(chosen.out), found, titled_markdown(found))
    if chosen.picture:
        file = Path(chosen.picture)
        with picture_formats([file.suffix.removeprefix("."), *chosen.formats]):
            picture(file, runs, speed)
