"""Program of ``python train.py``, from its arguments to its exit status."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from zoo.cli import COMMAND
from zoo.config import ConfigError, load_run_config, run_dir, run_label
from zoo.options.choices import register_choices
from zoo.options.command import check_command
from zoo.options.starting import Invocation, start
from zoo.paths import program_command, read_path, take_paths, take_text
from zoo.plugins import import_typed, plugin_words
from zoo.ranks import job_id, this_launch
from zoo.sweeps.compose import SHOWS, asks_for_sweep

if TYPE_CHECKING:
    from zoo.training.signals import Interrupted

FOLDER = "hydra.run.dir"


def main(arguments: Sequence[str]) -> int:
    """Trains a run or a sweep, or shows what Hydra is asked for; returns the exit status.

    Raises:
        ConfigError: on a configuration that cannot be run.
    """
    import_typed(arguments, "train")
    if asks_for_sweep(list(arguments)):
        from zoo.sweeps.driver import run_sweep

        return run_sweep(list(arguments))
    OmegaConf.register_new_resolver("run_dir", run_dir, replace=True)
    OmegaConf.register_new_resolver("run_label", run_label, replace=True)
    register_choices(arguments)
    chosen = list(arguments) if any(a in SHOWS for a in arguments) else choose_folder(arguments)
    if chosen is None:
        return 0
    check_command(take_paths(chosen))
    sys.argv[1:] = [*COMMAND, *chosen]  # what processes that Lightning starts repeat
    start("train", _run, chosen)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # all is done: no traceback from the interpreter's end
    return 0


def choose_folder(arguments: Sequence[str]) -> list[str] | None:
    """Replaces ``resume=auto`` by ``resume=FOLDER`` if there is a run to resume.

    Returns:
        The arguments with the run's folder, or None if that run has its whole budget.

    Raises:
        ConfigError: if nothing says which folder ``resume=auto`` means, or if there is no run in that of ``resume=``.
    """
    resume, others = take_text(list(arguments), "resume")
    folder, others = take_text(others, FOLDER)
    folder = read_path(folder) if folder else folder
    if resume == "auto":
        resume, folder = _existing(folder or _folder_of_job(), others)
        if folder is None:
            return None
    elif resume not in (None, "", "null"):
        load_run_config(read_path(str(resume)))
    if not this_launch().speaks:
        folder = "."  # the first process has the folder; where it is, the others need not know
    given = {"resume": resume, FOLDER: folder}
    return [*others, *(f"{key}={value}" for key, value in given.items() if value is not None)]


def _folder_of_job() -> str:
    job = job_id()
    if job is None:
        raise ConfigError(f"resume=auto: which run is meant? Set {FOLDER}, or start it as a job of SLURM or torchrun.")
    return f"runs/{job}"


def _existing(folder: str, others: Sequence[str]) -> tuple[str | None, str | None]:
    """``resume`` and folder of a run to start or to continue; no folder if it is finished."""
    from zoo.runs.run_folder import RunFolder

    if not RunFolder(folder).holds_run():
        return None, folder
    if is_finished(Path(folder), others):
        if this_launch().speaks:
            tell_end(folder)
        return folder, None
    return folder, folder


def is_finished(run: Path, overrides: Sequence[str]) -> bool:
    """Returns whether a run has the budget that it was given, or that ``overrides`` give it."""
    from zoo.options.budget import step_budget
    from zoo.training.checkpointing import read_resumed, resume_checkpoint

    checkpoint = resume_checkpoint(run)
    if checkpoint is None:
        return False
    trained, config = read_resumed(checkpoint), load_run_config(run)
    for key in ("max_steps", "max_tokens"):
        value = take_text(list(overrides), f"trainer.{key}")[0]
        if value is not None:
            config.trainer.update({"max_tokens": None, key: None if value == "null" else int(float(value))})
    return not trained.validation_due and trained.step >= step_budget(config.trainer, config.data.length)


def _run(config: DictConfig, job: Invocation) -> None:
    from zoo.options.continued import initial_config, resumed_config
    from zoo.training.run import train
    from zoo.training.signals import Interrupted

    if config.resume:
        config = resumed_config(config, job.overrides)
    elif config.init:
        config = initial_config(config, job.overrides)
    try:
        train(config, job.folder)
    except Interrupted as stop:
        raise SystemExit(tell_interrupted(stop, job.folder)) from None
    if this_launch().speaks:
        tell_end(job.folder)


def tell_interrupted(stop: Interrupted, folder: str) -> int:
    """Prints how to resume, once, and returns the exit status."""
    from zoo.runs.run_folder import RunFolder

    launch = this_launch()
    if launch.speaks:
        again = program_command("train.py", f"resume={folder}", *plugin_words())
        how = f"continue with: {again}" if RunFolder(folder).holds_run() else "nothing was kept: start it again"
        print(f"{stop}; {how}", file=sys.stderr, flush=True)
        with suppress(OSError):
            Path(folder).rmdir()
    if launch.by == "lightning" and launch.rank and stop.step is not None:
        return 0  # the first process has the status; it would be killed if a child of its had another one
    return 128 + stop.number


def tell_end(folder: str) -> None:
    """Prints the result of a finished run and what can be done with it."""
    from zoo.training.monitoring.monitor import held_out

    if text := held_out(Path(folder)):
        print(f"held-out  {text}")
    print(f"finished: {folder}\nevaluate: {program_command('eval.py', f'run={folder}', *plugin_words())}", flush=True)
