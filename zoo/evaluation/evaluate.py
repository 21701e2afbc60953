"""One evaluation from beginning to end: tasks, result files and pictures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from zoo.data import DataError
from zoo.evaluation.display.perplexity_plots import plot_context, plot_position
from zoo.evaluation.display.recall_plots import plot_depths
from zoo.evaluation.display.training_plots import plot_documents, plot_training
from zoo.evaluation.results.records import SCHEMA, write_results
from zoo.evaluation.tasks.base import Outcome, Task
from zoo.evaluation.tasks.question_answering import HubSuite
from zoo.evaluation.tasks.suite import Suite
from zoo.files import read_metrics
from zoo.runs.loaded_run import OpenedRun
from zoo.runs.provenance import describe_model, describe_run, describe_tokenizer, layer_pattern


@dataclass(frozen=True)
class Written:
    """An evaluation and the files it left: the result first, then pictures."""

    outcome: Outcome
    content: dict[str, Any]
    files: list[Path]


@dataclass(frozen=True)
class LeftOut:
    """A task of a suite that the data do not allow."""

    task: str
    reason: str


def evaluate(run: OpenedRun, task: Task | Suite | HubSuite, seed: int = 0) -> Iterator[Written | LeftOut]:
    """Evaluate a run on a task, or on every task of a suite, one after the other.

    Raises:
        DataError: of a task that is not part of a suite; those of a suite are left out.
    """
    if not isinstance(task, (Suite, HubSuite)):
        yield evaluate_run(run, task, seed)
        return
    for name, member in task.tasks():
        try:
            yield evaluate_run(run, member, seed)
        except DataError as error:
            yield LeftOut(name, str(error))


def check_task(run: OpenedRun, task: Task | Suite | HubSuite, seed: int = 0) -> None:
    """Refuse what :func:`evaluate` would refuse of a run's data and options, before anything is scored.

    Args:
        run: its decoder is not asked, so that it may be one without memory.

    Raises:
        ConfigError: on an option. DataError: of a task, or of a suite of which nothing could be asked.
    """
    if not isinstance(task, (Suite, HubSuite)):
        task.check(run, seed)
        return
    reasons = []
    members = list(task.tasks())
    for name, member in members:
        try:
            member.check(run, seed)
        except DataError as error:
            reasons.append(f"{name}: {error}")
    if len(reasons) == len(members):
        raise DataError(f"every task of it would be left out: {'; '.join(reasons)}")


def evaluate_run(run: OpenedRun, task: Task, seed: int = 0) -> Written:
    """Evaluate a run and write to ``run.results``; every file appears whole or not at all."""
    outcome = _with_undefined(task.evaluate(run, seed))
    content = {
        "schema": SCHEMA,
        "run": describe_run(run, seed),
        "model": describe_model(run, [record.length for record in outcome.records if record.length]),
        "tokenizer": describe_tokenizer(run, outcome.bytes_per_token),
        "protocol": outcome.protocol,
        "results": [record.to_dict() for record in outcome.records],
        "warnings": outcome.warnings,
    }
    folder = run.results
    file = folder / f"{outcome.stem}.json"
    write_results(file, content, outcome.samples)
    return Written(outcome, content, [file, *_draw(run, outcome, content, folder)])


def _with_undefined(outcome: Outcome) -> Outcome:
    """An outcome whose last warning names the metrics that have no finite value."""
    undefined = dict.fromkeys(record.metric for record in outcome.records if record.value is None)
    if not undefined:
        return outcome
    return replace(outcome, warnings=[*outcome.warnings, f"Not finite, and left out: {', '.join(undefined)}."])


def _draw(run: OpenedRun, outcome: Outcome, content: dict[str, Any], folder: Path) -> Iterable[Path]:
    model, records = layer_pattern(run.decoder.config.layer_types), content["results"]
    task = records[0]["task"] if records else ""
    title, file = f"{model}: {outcome.title}", folder / f"{outcome.stem}.png"
    if task == "perplexity":
        yield from _draw_perplexity(run, outcome, folder, model)
    elif task == "perplexity_position":
        yield from plot_position(file, [(model, records)], title)
    elif task == "perplexity_context":
        yield from plot_context(file, [(model, records)], title, content["model"]["train_len"])
    elif task != "lm_eval":
        yield from plot_depths(file, records, title)


def _draw_perplexity(run: OpenedRun, outcome: Outcome, folder: Path, model: str) -> Iterable[Path]:
    record = next((r for r in outcome.records if r.metric == "bits_per_byte" and r.value is not None), None)
    if record is None or record.value is None:
        return
    curves, documents = folder / f"{outcome.stem}.training.png", folder / f"{outcome.stem}.documents.png"
    metrics = read_metrics(run.folder / "metrics.jsonl")
    yield from plot_training(curves, metrics, f"{model}: training", {outcome.title: record.value})
    yield from plot_documents(documents, outcome.samples, f"{model}: {outcome.title}", record.value, record.ci95)
