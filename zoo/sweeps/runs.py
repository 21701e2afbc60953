"""Run folders of a sweep: what each still needs, and where folders of an older configuration go."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from filelock import FileLock, Timeout

from zoo.model.checkpoint import CheckpointError, find_checkpoint, read_checkpoint
from zoo.paths import ROOT
from zoo.plugins import plugin_words
from zoo.sweeps.arms import merge
from zoo.sweeps.compose import PlannedRun
from zoo.sweeps.evaluations import EvalTask
from zoo.sweeps.ledger import Ledger, LedgerEntry

PROGRAMS = ROOT


def is_busy(folder: Path) -> bool:
    """Returns whether a process trains in a run folder: one whose sweep was killed goes on to its end."""
    if not (folder / ".lock").exists():
        return False
    try:
        with FileLock(folder / ".lock", timeout=0):
            return False
    except Timeout:
        return True


def is_trained(folder: Path, budget: int) -> bool:
    """Returns whether the checkpoint in ``folder`` has all ``budget`` optimizer steps."""
    try:
        content = read_checkpoint(find_checkpoint(folder))
    except CheckpointError:
        return False
    return int(content.get("global_step", 0)) >= budget


def find_finished(ledger: Ledger, root: Path, run: PlannedRun, tasks: Sequence[EvalTask]) -> LedgerEntry | None:
    """Returns the entry of a run that is finished, if it is in its place and no other came after it."""
    entry, owner = ledger.get(run.key), ledger.owner(run.folder)
    if owner is None or owner.key != run.key:
        return None
    if entry is None or entry.status != "finished" or entry.folder != run.folder or not (root / run.folder).is_dir():
        return None
    return entry if {task.label for task in tasks} <= set(entry.tasks) else None


def make_room(ledger: Ledger, root: Path, run: PlannedRun) -> list[str]:
    """Have in the run's folder what belongs to its configuration, or nothing; returns what was moved, in words.

    A folder of another configuration, or one that was used and has no checkpoint to resume from, is moved aside, to
    ``seed-N~KEY``; one of this configuration that lies aside is moved back. Nothing is deleted.

    Returns:
        What was moved, in words.
    """
    home, entry, moved = root / run.folder, ledger.get(run.key), []
    aside = root / entry.folder if entry and entry.folder != run.folder and (root / entry.folder).is_dir() else None
    owner = ledger.owner(run.folder)
    foreign = aside is not None or owner is None or owner.key != run.key
    in_the_way = _used(home) or (aside is not None and home.exists())
    if in_the_way and (foreign or not _has_checkpoint(home)):
        target = _free_name(home, owner.key[:8] if owner else "unknown")
        os.rename(home, target)
        moved.append(
            f"its folder was that of {'another configuration' if foreign else 'an attempt without checkpoint'}"
            f", which is kept as {target}"
        )
        if owner and owner.key != run.key:
            ledger.add(replace(owner, folder=target.relative_to(root).as_posix()))
    if aside is not None and entry is not None:
        home.parent.mkdir(parents=True, exist_ok=True)
        os.rename(aside, home)
        ledger.add(replace(entry, folder=run.folder))
        moved.append(f"this configuration has been run before: {aside} was moved back")
    return moved


def _used(folder: Path) -> bool:
    return (folder / "config.yaml").exists() or any((folder / "checkpoints").glob("*.ckpt"))


def _has_checkpoint(folder: Path) -> bool:
    return (folder / "checkpoints" / "last.ckpt").is_file()


def _free_name(folder: Path, key: str) -> Path:
    names = (folder.with_name(f"{folder.name}~{key}{'' if n == 1 else f'-{n}'}") for n in range(1, 1_000_000))
    return next(name for name in names if not name.exists())


def train_command(folder: Path, run: PlannedRun) -> list[str]:
    """Returns the command that trains from the beginning, or resumes from the checkpoint in ``folder``."""
    program = _program("train")
    if _has_checkpoint(folder):
        return [*program, f"resume={folder}", *plugin_words()]
    return [*program, *merge(plugin_words(), run.overrides), f"hydra.run.dir={folder}"]


def eval_command(folder: Path, run: PlannedRun, task: EvalTask) -> list[str]:
    """Returns the command that evaluates the run on a task, on the kind of device it was trained on."""
    device = ["device=cpu"] if run.config.trainer.accelerator == "cpu" else []
    program = _program("eval")
    return [*program, f"run={folder}", f"task={task.name}", *device, *plugin_words(), *task.overrides]


def _program(name: str) -> list[str]:
    """How to start train.py or eval.py; without a checkout the command of the same name."""
    file = PROGRAMS / f"{name}.py"
    return [sys.executable, str(file)] if file.is_file() else [sys.executable, "-m", "zoo.commands", name]
