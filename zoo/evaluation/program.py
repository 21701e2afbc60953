"""What eval.py does: one run or several, the tables, and the comparison of several."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from zoo.config import ConfigError, load_run_config
from zoo.evaluation.compare import Run, compare_runs, comparison_notes, show_comparison, write_comparison
from zoo.evaluation.evaluate import LeftOut, evaluate
from zoo.evaluation.qa_task import HubSuite
from zoo.evaluation.run import OpenedRun, open_run
from zoo.evaluation.suite import Suite
from zoo.evaluation.tables import show
from zoo.evaluation.tasks import Task
from zoo.paths import expand, split_paths


def evaluate_runs(
    run: str | Sequence[str] | None,
    task: Task | Suite | HubSuite,
    checkpoint: str = "last",
    device: torch.device | str = "cpu",
    seed: int = 0,
    out: str | None = None,
    console: Console | None = None,
) -> None:
    """Evaluate every run, print its tables, and compare the runs if there are several.

    Args:
        run: a run folder, or several with commas between them. out: folder of the comparison; None for a folder in
            comparisons/ whose name depends on the runs and the task alone.

    Raises:
        ConfigError: on a run that is named twice or without any result, and as in
        :func:`zoo.evaluation.run.open_run`.
    """
    console = console or Console()
    folders = split_runs(run)
    if not folders:
        raise ConfigError("run is not set: expected the folder that train.py wrote, as in run=RUN_DIR.")
    for folder in folders if len(folders) > 1 else []:
        load_run_config(folder)  # says early what is no run
    compared: list[Run] = []
    for number, folder in enumerate(folders):
        opened = open_run(folder, checkpoint, device)
        if len(folders) > 1:
            console.rule(f"{number + 1} of {len(folders)}: {folder}", align="left", characters="-")
        compared.append((_label(opened, folders), []))
        for written in evaluate(opened, task, seed):
            if isinstance(written, LeftOut):
                console.print(f"{written.task} is left out: {written.reason}", style="yellow", markup=False)
                continue
            show(written, console)
            compared[-1][1].append(written)
        if not compared[-1][1]:
            raise ConfigError(f"{folder} has no result: every task was left out. Change what the notes above name.")
    if len(compared) > 1:
        rows = compare_runs(compared, seed)
        where = expand(out) if out else Path("comparisons") / _name(folders, compared, checkpoint, seed)
        show_comparison(rows, write_comparison(where, compared, rows), console, comparison_notes(compared))


def split_runs(run: str | Sequence[str] | None) -> list[str]:
    """Folders of ``run=A,B`` or of a list; the name of a folder that exists may have commas itself.

    Raises:
        ConfigError: if there is none, or one is named twice.
    """
    if isinstance(run, str):
        run = split_paths(run)
    if not run:
        raise ConfigError("run is not set: expected the folder that train.py wrote, as in run=RUN_DIR.")
    resolved = [expand(folder).resolve() for folder in run]
    for folder, path in zip(run, resolved):
        if resolved.count(path) > 1:
            raise ConfigError(f"run names {folder} twice: expected different run folders.")
    return list(run)


def _label(run: OpenedRun, folders: Sequence[str]) -> str:
    """The folder's name, with its parents as far as names are the same."""
    paths = [expand(folder).resolve() for folder in folders]
    own = run.folder.resolve()
    for parts in range(1, len(own.parts)):
        label = "/".join(own.parts[-parts:])
        if sum("/".join(path.parts[-parts:]) == label for path in paths) == 1:
            return label
    return str(own)


def _name(folders: Sequence[str], compared: Sequence[Run], checkpoint: str, seed: int) -> str:
    stems = [written.outcome.stem for written in compared[0][1]]
    paths = [str(expand(folder).resolve()) for folder in folders]
    key = json.dumps([paths, stems, checkpoint, seed])
    return f"{stems[0] if len(stems) == 1 else 'suite'}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"
