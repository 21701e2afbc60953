"""Evaluation of a run on tasks, from the questions to result files and plots."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

from zoo.data import DataError
from zoo.evaluation.results.cell_store import open_cells
from zoo.evaluation.results.models import SCHEMA
from zoo.evaluation.results.records import make_results, write_results
from zoo.evaluation.tasks.base import Outcome, Task, TaskSuite
from zoo.evaluation.tasks.result_kind import Written
from zoo.files import read_metrics
from zoo.runs.file_names import join_name
from zoo.runs.loaded_run import OpenedRun
from zoo.runs.provenance import describe_model, describe_run, describe_tokenizer
from zoo.runs.subject import Subject


@dataclass(frozen=True)
class LeftOut:
    """A task of a suite that the data do not allow, and the reason."""

    task: str
    reason: str


def evaluate(run: OpenedRun, task: Task | TaskSuite, seed: int = 0) -> Iterator[Written | LeftOut]:
    """Evaluates a run on a task, or on every task of a suite, one after the other.

    Raises:
        DataError: if the data do not allow a single task; such tasks of a suite are left out.
    """
    if not isinstance(task, TaskSuite):
        yield evaluate_run(run, task, seed)
        return
    for name, member in task.tasks():
        try:
            yield evaluate_run(run, member, seed)
        except DataError as error:
            yield LeftOut(name, str(error))


def check_task(subject: Subject, task: Task | TaskSuite, seed: int = 0) -> None:
    """Raises what :func:`evaluate` would raise about a run's data and options, before anything is scored.

    Args:
        subject: its decoder is not used, so that it may be one without memory.
        task: task to check.
        seed: seed of every random choice.

    Raises:
        ConfigError: on an option.
        DataError: on data that do not allow the task, or any task of a suite.
    """
    if not isinstance(task, TaskSuite):
        task.check(subject, seed)
        return
    reasons = []
    members = list(task.tasks())
    for name, member in members:
        try:
            member.check(subject, seed)
        except DataError as error:
            reasons.append(f"{name}: {error}")
    if len(reasons) == len(members):
        raise DataError(f"every task of it would be left out: {'; '.join(reasons)}")


def evaluate_run(run: OpenedRun, task: Task, seed: int = 0) -> Written:
    """Evaluates a run and writes the results to ``run.results``, each file atomically."""
    subject = run.subject
    outcome = _with_undefined(task.evaluate(subject, seed, open_cells(run, task.fresh).keep))
    stem = file_stem(task, outcome, subject, run.checkpoint, seed)
    file = run.results / f"{stem}.json"
    content = {
        "schema": SCHEMA,
        "run": describe_run(run, seed),
        "model": describe_model(run, [record.length for record in outcome.records if record.length]),
        "tokenizer": describe_tokenizer(run, outcome.bytes_per_token),
        "protocol": outcome.protocol,
        "results": outcome.records,
        "warnings": outcome.warnings,
    }
    results = make_results(content, str(file))
    write_results(file, results, outcome.samples)
    written = Written(stem, outcome.title, results, outcome.samples, [file], task.kind)
    pictures = task.kind.draw(written, file.with_suffix(".png"), partial(read_metrics, run.folder / "metrics.jsonl"))
    return replace(written, files=[file, *pictures])


def file_stem(task: Task, outcome: Outcome, subject: Subject, checkpoint: str = "last", seed: int = 0) -> str:
    """Returns the name of a result file without its suffix: what was read, the checkpoint, options and the seed.

    Args:
        task: the task.
        outcome: its outcome.
        subject: the model.
        checkpoint: checkpoint of the run; ``last`` is not named.
        seed: seed of every random choice; 0 is not named.
    """
    parts = [*outcome.name, *([] if checkpoint == "last" else [checkpoint]), *task.name_parts(subject)]
    return join_name(parts + ([f"seed{seed}"] if seed else []))


def _with_undefined(outcome: Outcome) -> Outcome:
    """An outcome whose last warning names the metrics that have no finite value."""
    undefined = dict.fromkeys(record.metric for record in outcome.records if record.value is None)
    if not undefined:
        return outcome
    return replace(outcome, warnings=[*outcome.warnings, f"Not finite, and left out: {', '.join(undefined)}."])
