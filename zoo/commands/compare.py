"""Runs side by side: a Markdown table of held-out bits per byte, parameters and cache, and a picture of their curves.

    python scripts/compare.py RUN_DIR ... [OPTION=VALUE ...]

Each run must have been evaluated (python eval.py run=RUN_DIR task=perplexity).
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from pydantic import BaseModel, ValidationError

import zoo
from zoo.config import load_run_config
from zoo.evaluation.results.records import read_held_out
from zoo.files import read_metrics, replace_file, replace_text
from zoo.paths import expand
from zoo.schema.arguments import Arguments, InputFile, OutputFile, read_arguments
from zoo.schema.base import Positive, option

RATE = "train/tokens_per_second"


class Options(Arguments):
    """Options of the comparison."""

    out: OutputFile | None = option("file of the Markdown; empty: it is only printed", default=None)
    speed: InputFile | None = option("file that scripts/bench_models.py wrote; empty: speeds of training", default=None)
    picture: OutputFile | None = option("file of the PNG; empty: none", default=None)


class Speed(BaseModel):
    """Speed of one arm of scripts/bench_models.py at one context."""

    attention: str
    context: Positive
    tokens_per_second: float


class Speeds(BaseModel):
    """What scripts/bench_models.py wrote."""

    rows: list[Speed]


def describe(folder: Path) -> dict[str, Any]:
    """Facts of one evaluated run."""
    config = load_run_config(folder)
    result, record = read_held_out(folder)
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
        "ci95": record.ci95,
        "tokens": result.model.train_tokens,
        "cache": cost.cache_bytes,
        "short_cache": short.cache_bytes,
        "rate": statistics.median([row[RATE] for row in metrics if RATE in row] or [math.nan]),
        "curve": [(row["tokens"], row["val/bits_per_byte"]) for row in metrics if "val/bits_per_byte" in row],
    }


def read_speed(file: str | None) -> list[Speed]:
    """Rows of the file of scripts/bench_models.py; none if there is no file.

    Raises:
        ValueError: if the file is another one.
    """
    try:
        return Speeds.model_validate_json(Path(file).read_bytes()).rows if file else []
    except ValidationError as error:
        raise ValueError(f"speed={file}: expected the JSON that scripts/bench_models.py writes.") from error


def table(runs: list[dict[str, Any]], speed: list[Speed]) -> str:
    """Markdown, a section per data set."""
    rates = {(row.attention, row.context): row.tokens_per_second for row in speed}
    contexts = sorted({row.context for row in speed})
    by_data = defaultdict(list)
    for run in runs:
        by_data[run["data"]].append(run)
    lines = []
    for data, arms in by_data.items():
        lines += [f"### {data}, {arms[0]['tokens']:,} training tokens", ""]
        heads = ["attention", "parameters", "held-out bits per byte (95 %)", "cache at 4k", "at 64k, bf16"]
        heads += [f"tokens/s at {context:,}" for context in contexts] or ["tokens/s in training"]
        lines += ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
        for run in sorted(arms, key=lambda r: r["bits"]):
            cells = [f"`{run['attention']}`", f"{run['parameters']:,}"]
            cells += [
                f"{run['bits']:.3f} ({interval(run['ci95'])})",
                f"{run['short_cache'] / 2**20:.2f} MiB",
                f"{run['cache'] / 2**20:.2f} MiB",
            ]
            rows = [rates.get((run["attention"], context), math.nan) for context in contexts] or [run["rate"]]
            cells += ["-" if math.isnan(rate) else f"{rate:,.0f}" for rate in rows]
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def interval(ci95: list[float] | None) -> str:
    """The interval, which needs more than one document."""
    return "one document" if ci95 is None else f"{ci95[0]:.3f} to {ci95[1]:.3f}"


def picture(file: Path, runs: list[dict[str, Any]], speed: list[Speed]) -> None:
    """Left: validation curves by data set; right: training speed against context."""
    sets = list(dict.fromkeys(run["data"] for run in runs))
    names = list(dict.fromkeys(run["attention"] for run in runs))
    color = {name: plt.get_cmap("tab10")(i) for i, name in enumerate(names)}
    with plt.rc_context(
        {
            "font.size": 10,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.alpha": 0.25,
        }
    ):
        count = len(sets) + bool(speed)
        figure, grid = plt.subplots(1, count, figsize=(4.4 * count, 3.7), dpi=150, squeeze=False)
        panels = grid[0]
        for axes, data in zip(panels, sets):
            for run in (r for r in runs if r["data"] == data and r["curve"]):
                x, y = zip(*run["curve"])
                axes.plot(
                    [v / 1e3 for v in x],
                    y,
                    marker="o",
                    markersize=3,
                    color=color[run["attention"]],
                    label=run["attention"],
                )
            axes.set(title=f"{data}: validation", xlabel="thousand training tokens", ylabel="bits per byte")
        for name in names if speed else []:
            points = [(row.context, row.tokens_per_second) for row in speed if row.attention == name]
            panels[-1].plot(
                [x for x, _ in points], [y for _, y in points], marker="o", markersize=3, color=color[name], label=name
            )
        if speed:
            panels[-1].set(title="training speed", xlabel="context", ylabel="tokens per second", xscale="log")
            contexts = sorted({row.context for row in speed})
            panels[-1].set_xticks(contexts, [f"{c:,}" for c in contexts])
            panels[-1].minorticks_off()
            panels[-1].set_ylim(bottom=0)
        panels[0].legend(frameon=False, fontsize=9)
        figure.tight_layout()
        replace_file(file, lambda unfinished: figure.savefig(unfinished, format="png"))


def main(arguments: list[str]) -> None:
    """Read the runs, print and write the table, draw the picture."""
    chosen, folders = read_arguments(Options, arguments, __doc__, rest="RUN_DIR")
    if not folders:
        raise ValueError("no run: expected the folders that train.py wrote.")
    speed = read_speed(chosen.speed)
    runs = [describe(expand(folder)) for folder in folders]
    text = table(runs, speed)
    print(text)
    if chosen.out:
        replace_text(Path(chosen.out), text)
    if chosen.picture:
        picture(Path(chosen.picture), runs, speed)
