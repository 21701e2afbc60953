"""Program of eval.py: evaluates one run or several, prints tables, and compares several."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from zoo.config import ConfigError, load_run_config
from zoo.evaluation.compare import Compared, compare_runs, comparison_notes, show_comparison, write_comparison
from zoo.evaluation.evaluate import LeftOut, evaluate
from zoo.evaluation.tasks.base import Task, TaskSuite
from zoo.evaluation.tasks.result_kind import Written
from zoo.files import is_writable
from zoo.paths import expand, split_paths
from zoo.runs.loaded_run import open_run
from zoo.runs.run_folder import RESULTS


def evaluate_runs(
    run: str | Sequence[str] | None,
    task: Task | TaskSuite,
    checkpoint: str = "last",
    device: torch.device | str = "cpu",
    seed: int = 0,
    out: str | None = None,
    console: Console | None = None,
    data_path: str | None = None,
    cache_dir: str | None = None,
) -> None:
    """Evaluates every run, prints its tables, and compares the runs if there are several.

    Args:
        run: a run folder, or several with commas between them.
        task: task or suite to evaluate on.
        checkpoint: ``last``, ``best`` or ``step-N``.
        device: device of the decoders.
        seed: seed of samples and bootstraps.
        out: folder for the results of one run, in place of RUN_DIR/eval, or for the comparison of several; None for a
            folder in comparisons/ whose name depends on the runs and the task alone.
        console: console to print to.
        data_path: present path of the runs' data, if they have moved.
        cache_dir: folder for token stores, in place of that of training.

    Raises:
        ConfigError: on a run that is named twice or without any result, and as in :func:`zoo.runs.loaded_run.open_run`.
    """
    console = console or Console()
    folders = split_runs(run)
    if not folders:
        raise ConfigError("run is not set: expected the folder that train.py wrote, as in run=RUN_DIR.")
    for folder in folders if len(folders) > 1 else []:
        load_run_config(folder)  # says early what is no run
    places = result_folders(folders, out)
    compared: list[Compared] = []
    for number, folder in enumerate(folders):
        opened = replace(open_run(folder, checkpoint, device, data_path, cache_dir), out=places[number])
        if len(folders) > 1:
            console.rule(f"{number + 1} of {len(folders)}: {folder}", align="left", characters="-")
        compared.append((folder_label(opened.folder, folders), []))
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


def show(written: Written, console: Console) -> None:
    """Prints the numbers with their intervals, the warnings and the files."""
    console.print(written.kind.table(written))
    for line in written.kind.lines(written):
        console.print(line, highlight=False, markup=False)
    for warning in written.warnings:
        console.print(f"note: {warning}", style="yellow", highlight=False, markup=False)
    for file in written.files:
        console.print(str(file), highlight=False, markup=False, soft_wrap=True)


def result_folders(folders: Sequence[str], out: str | None) -> list[Path | None]:
    """Returns the folder for the results of each run; None for RUN_DIR/eval.

    Of several runs, those whose own folders cannot be written to get a folder in ``out``.

    Raises:
        ConfigError: if one cannot be written to.
    """
    if out and not is_writable(expand(out)):
        raise ConfigError(f"out={out} cannot be written to: expected a folder that can, or one that can be made.")
    if len(folders) == 1 and out:
        return [expand(out)]
    places: list[Path | None] = []
    for number, folder in enumerate(folders):
        if not expand(folder).is_dir() or is_writable(expand(folder) / RESULTS):
            places.append(None)  # open_run says what is no run
        elif out:
            places.append(expand(out) / f"run-{number + 1}")
        else:
            raise ConfigError(f"{folder} cannot be written to: give out=FOLDER for results, pictures and progress.")
    return places


def split_runs(run: str | Sequence[str] | None) -> list[str]:
    """Splits ``run=A,B`` or a list into folders; the name of a folder that exists may contain commas.

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


def folder_label(folder: Path, folders: Sequence[str | Path]) -> str:
    """The folder's name, with its parents as far as other ``folders`` have the same name."""
    paths = [expand(other).resolve() for other in folders]
    own = folder.resolve()
    for parts in range(1, len(own.parts)):
        label = "/".join(own.parts[-parts:])
        if sum("/".join(path.parts[-parts:]) == label for path in paths) == 1:
            return label
    return str(own)


def _name(folders: Sequence[str], compared: Sequence[Compared], checkpoint: str, seed: int) -> str:
    stems = [written.stem for written in compared[0][1]]
    paths = [str(expand(folder).resolve()) for folder in folders]
    key = json.dumps([paths, stems, checkpoint, seed])
    return f"{stems[0] if len(stems) == 1 else 'suite'}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"
