"""How this process was launched: alone, or as one of several by torchrun, srun or Lightning. Needs no torch."""

from __future__ import annotations

import getpass
import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

INTERACTIVE = ("bash", "interactive")  # names of SLURM jobs in which a user types
PATIENCE = 5.0  # seconds in which the first process says what went wrong, if it went wrong there too
FRESH = 60.0  # seconds after which what it said belongs to an earlier run


@dataclass(frozen=True)
class Launch:
    """Launch of this process, one of ``world``.

    Attributes:
        by: ``torchrun``, ``srun``, ``lightning`` (which starts further processes itself), or None for a process alone.
        rank: global rank of this process.
        world: number of processes of the whole run, 1 where it is not known yet.
        nodes: number of machines.
    """

    by: str | None
    rank: int
    world: int
    nodes: int

    @property
    def speaks(self) -> bool:
        """Whether this process prints and owns the run folder."""
        return self.rank == 0


def this_launch(env: Mapping[str, str] = os.environ) -> Launch:
    """Reads from the environment how this process was launched."""
    if "TORCHELASTIC_RUN_ID" in env:
        world, here = int(env["WORLD_SIZE"]), int(env.get("LOCAL_WORLD_SIZE", "1"))
        return Launch("torchrun", int(env["RANK"]), world, max(world // here, 1))
    if "LOCAL_RANK" in env:
        rank = int(env.get("RANK", env["LOCAL_RANK"]))
        elsewhere = int(env.get("NODE_RANK", env.get("GROUP_RANK", "0"))) > 0
        return Launch("lightning", rank or int(elsewhere), 1, 1)
    if _started_by_srun(env):
        return Launch("srun", int(env.get("SLURM_PROCID", "0")), _tasks(env), int(env.get("SLURM_NNODES", "1")))
    return Launch(None, 0, 1, 1)


def job_id(env: Mapping[str, str] = os.environ) -> str | None:
    """Returns the name of the scheduler's job: SLURM's, with the array index, or torchrun's.

    A requeued job keeps it.
    """
    if array := env.get("SLURM_ARRAY_JOB_ID"):
        return f"{array}_{env.get('SLURM_ARRAY_TASK_ID', '0')}"
    elastic = env.get("TORCHELASTIC_RUN_ID")
    return env.get("SLURM_JOB_ID") or (elastic if elastic and elastic != "none" else None)


def _tasks(env: Mapping[str, str]) -> int:
    return int(env.get("SLURM_STEP_NUM_TASKS", env.get("SLURM_NTASKS", "1")))


def _started_by_srun(env: Mapping[str, str]) -> bool:
    """Whether srun started this process as one of several; a batch script has some of srun's variables too."""
    step = "SLURM_STEP_ID" in env or env.get("SLURM_PROCID", "0") != "0"
    return step and _tasks(env) > 1 and env.get("SLURM_JOB_NAME") not in INTERACTIVE


def leave_word(env: Mapping[str, str] = os.environ) -> None:
    """In the first of several processes, tells the others that it has printed the error."""
    if (note := _note(env)) is not None:
        note.touch()


def word_was_left(patience: float = PATIENCE, env: Mapping[str, str] = os.environ) -> bool:
    """Waits for the first process on this machine to print the error, and returns whether it has."""
    note, until = _note(env), time.monotonic() + patience
    while note is not None:
        try:
            if time.time() - note.stat().st_mtime < FRESH:
                return True
        except FileNotFoundError:
            pass
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return False


def _note(env: Mapping[str, str]) -> Path | None:
    """A file that all processes of one start know, and no other start."""
    by = this_launch(env).by
    if by is None:
        return None
    if by == "srun":
        name = "-".join(env.get(key, "0") for key in ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT"))
    else:
        name = f"{env.get('TORCHELASTIC_RUN_ID', '')}-{env.get('MASTER_PORT', '')}"
    return Path(tempfile.gettempdir()) / f"zoo-{by}-{getpass.getuser()}-{name}.said"
