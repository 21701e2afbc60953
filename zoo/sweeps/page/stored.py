"""Reports as data: report.json contains everything that pages and plots are made of, so that they can be drawn again.

Measured times are not in it but in speed.csv beside it, since everything else is the same in each repetition.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from zoo.config import ConfigError
from zoo.sweeps.page.analysis import Analysis
from zoo.sweeps.page.facts import ArmFacts
from zoo.sweeps.page.figures import CURVES, KEYS
from zoo.sweeps.page.measures import Measure, Measures
from zoo.sweeps.page.read import RunData, SweepData
from zoo.sweeps.page.summary import SEEDS, Comparison, Summary

FILE, SPEED_FILE = "report.json", "speed.csv"
ABOUT = ("name", "question", "command", "axis", "reference")
DRAWN = ("step", "tokens", *(f"{part}/{key}" for part in CURVES for key, _ in KEYS))  # of the metrics of a run


@dataclass(frozen=True)
class StoredRun:
    """A run with its curves of loss."""

    arm: str
    seed: int
    status: str
    reason: str | None
    overrides: list[str]
    metrics: list[dict[str, float | None]]


@dataclass(frozen=True)
class StoredMeasure:
    """A measure whose parts are indices of other measures."""

    label: str
    stem: str
    task: str
    variant: str
    length: int
    metric: str
    higher_is_better: bool
    chance: float | None
    parts: list[int]
    headline: bool


@dataclass(frozen=True)
class StoredNumber:
    """An arm's number in a measure and, except for the reference, its comparison."""

    arm: str
    measure: int
    value: Summary
    compared: Comparison | None


@dataclass(frozen=True)
class StoredVerdict:
    """Verdict on a first arm against a second one."""

    arm: str
    other: str
    measure: int
    verdict: str


@dataclass(frozen=True)
class Stored:
    """Content of report.json."""

    name: str
    question: str
    command: str
    axis: str
    reference: str
    match: str | None
    tasks: list[str]
    arms: dict[str, ArmFacts]
    cache_length: int | None
    runs: list[StoredRun]
    measures: list[StoredMeasure]
    loss: int | None
    recall: int | None
    numbers: list[StoredNumber]
    pairs: list[StoredVerdict]
    notes: list[str] = field(default_factory=list)
    settings: list[tuple[str, str]] = field(default_factory=list)
    schema: Literal["zoo-report/1"] = "zoo-report/1"


ADAPTER = TypeAdapter(Stored)


def report_json(analysis: Analysis) -> str:
    """Returns the content of report.json; the same results give the same text."""
    sweep, places = analysis.sweep, _places(analysis.measures)
    content = Stored(
        **{name: getattr(sweep, name) for name in (*ABOUT, "match")},
        tasks=list(sweep.tasks),
        arms={arm: analysis.facts[arm] for arm in sweep.arms},
        cache_length=analysis.cache_length,
        runs=[_store_run(run) for run in sweep.runs],
        measures=[
            StoredMeasure(**{**vars(measure), "parts": [places[part] for part in measure.parts]}) for measure in places
        ],
        loss=None if analysis.measures.loss is None else places[analysis.measures.loss],
        recall=None if analysis.measures.recall is None else places[analysis.measures.recall],
        numbers=[
            StoredNumber(arm, places[measure], found, analysis.comparisons.get((arm, measure)))
            for (arm, measure), found in analysis.summaries.items()
        ],
        pairs=[StoredVerdict(arm, other, places[m], verdict) for (arm, other, m), verdict in analysis.pairs.items()],
        notes=analysis.notes,
        settings=analysis.settings,
    )
    return ADAPTER.dump_json(content, indent=1).decode() + "\n"


def _places(measures: Measures) -> dict[Measure, int]:
    """Numbers of the measures; parts may come after what they are parts of."""
    return {measure: number for number, measure in enumerate(measures.all)}


def _store_run(run: RunData) -> StoredRun:
    rows: list[dict[str, Any]] = [{key: row[key] for key in DRAWN if key in row} for row in run.metrics]
    shown = [row for row in rows if any("/" in key for key in row)]
    return StoredRun(run.arm, run.seed, run.status, run.reason, list(run.overrides), shown)


def read_report(folder: str | Path) -> Analysis:
    """Reads the analysis from a report.json.

    Raises:
        ConfigError: if there is no report.json, or if it is damaged.
    """
    file = Path(folder) / FILE
    try:
        content = ADAPTER.validate_json(file.read_bytes())
        measures = _restore_measures(content.measures)
    except FileNotFoundError as error:
        raise ConfigError(f"{folder} has no {FILE}: expected the folder of a report.") from error
    except (ValidationError, IndexError, RecursionError) as error:
        raise ConfigError(f"{file} is damaged: {' '.join(str(error).split())[:200]}.") from error
    return Analysis(
        _restore_sweep(content),
        content.arms,
        Measures(
            tuple(measures),
            None if content.loss is None else measures[content.loss],
            None if content.recall is None else measures[content.recall],
        ),
        {(number.arm, measures[number.measure]): number.value for number in content.numbers},
        {(n.arm, measures[n.measure]): n.compared for n in content.numbers if n.compared is not None},
        {(pair.arm, pair.other, measures[pair.measure]): pair.verdict for pair in content.pairs},
        _read_speed(Path(folder) / SPEED_FILE),
        content.cache_length,
        content.settings,
        content.notes,
    )


def _restore_measures(stored: Sequence[StoredMeasure]) -> list[Measure]:
    def restore(one: StoredMeasure) -> Measure:
        return Measure(**{**vars(one), "parts": tuple(restore(stored[part]) for part in one.parts)})

    return [restore(one) for one in stored]


def _restore_sweep(content: Stored) -> SweepData:
    runs = (
        RunData(r.arm, r.seed, r.status, r.reason, overrides=tuple(r.overrides), metrics=tuple(r.metrics))
        for r in content.runs
    )
    about = {name: getattr(content, name) for name in ABOUT}
    return SweepData(
        **about, match=content.match, tasks=tuple(content.tasks), arms=tuple(content.arms), runs=tuple(runs)
    )


def _read_speed(file: Path) -> dict[str, Summary]:
    if not file.is_file():
        return {}
    with file.open(encoding="utf-8", newline="") as lines:
        return {row["arm"]: _restore_speed(row) for row in csv.DictReader(lines)}


def _restore_speed(row: dict[str, str]) -> Summary:
    mean, n = float(row["tokens_per_second"]), int(row["seeds"])
    if not row["low"]:
        return Summary(mean, None, n, "")
    return Summary(mean, (float(row["low"]), float(row["high"])), n, SEEDS, float(row["deviation"]))
