"""Launcher of runs as SLURM jobs, by submitit; the sweep's folder must be on a file system that the nodes share.

The driver stays where it was started, submits, and writes the ledger. Stopping it cancels its jobs; if it was killed,
cancel what it has left in the queue (``scancel --name zoo-NAME``) before the sweep is resumed.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zoo.config import ConfigError
from zoo.sweeps.launch import failure_reason, start_process


def run_commands(commands: Sequence[Sequence[str]], folder: str, log: str) -> list[int]:
    """Runs commands on a node, one after the other until one fails, and returns their exit statuses."""
    # Lightning takes SLURM's tasks for its ranks, unless the job is called so: it shall start its own.
    environment = {**os.environ, "SLURM_JOB_NAME": "bash"}
    codes: list[int] = []
    for command in commands:
        process = start_process(command, Path(log), environment, folder, own_group=False)
        try:
            codes.append(process.wait())
        except BaseException:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=25)  # SLURM kills 30 seconds after it asks
            except subprocess.TimeoutExpired:
                process.kill()
            raise
        if codes[-1] != 0:
            break
    return codes


class SlurmJob:
    """Job of submitit."""

    def __init__(self, job: Any, log: Path) -> None:
        self.job, self.log = job, log
        self.codes: list[int] = []
        self.ended = False
        self.lost: str | None = None

    def poll(self) -> bool:
        """Returns whether the job has ended; exit statuses are known at the end only."""
        if self.ended or not self.job.done():
            return self.ended
        self.ended = True
        try:
            self.codes = list(self.job.result())
        except Exception as error:  # of submitit, or of SLURM: the job was canceled, ran out of time, lost its node
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            self.lost = f"job {self.job.job_id} ended with state {self.job.state}: {first}"
            self.codes = [1]
        return True

    def stop(self, hard: bool = False) -> None:
        """Asks SLURM to end the job, or with ``hard`` to kill it."""
        self.job.cancel()

    def fault(self) -> str:
        """Returns why the last command failed."""
        return self.lost or failure_reason(self.log, self.codes[-1])


class SlurmLauncher:
    """Launcher with at most ``jobs`` jobs in the queue.

    Args:
        jobs: largest number of jobs in the queue.
        folder: folder of submitit's own files.
        name: name of the jobs.
        options: ``cluster`` and keywords of submitit's ``update_parameters``.

    Raises:
        ConfigError: if submitit is not installed, or refuses the options.
    """

    def __init__(self, jobs: int, folder: Path, name: str, options: dict[str, Any]) -> None:
        try:
            import submitit
        except ImportError as error:
            raise ConfigError(
                "sweep.launcher=slurm needs submitit: pip install -c constraints.txt -e .[slurm]"
            ) from error
        if jobs < 1:
            raise ConfigError(f"sweep.jobs={jobs}: expected at least 1.")
        parameters = {key: value for key, value in options.items() if key != "cluster"}
        try:
            self.executor = submitit.AutoExecutor(folder, cluster=options.get("cluster"))
            self.executor.update_parameters(name=f"zoo-{name}", **parameters)
        except (RuntimeError, NameError, TypeError, ValueError) as error:
            raise ConfigError(f"sweep.slurm={options} is refused by submitit: {error}") from error
        self.running: list[SlurmJob | None] = [None] * jobs

    def _slot(self) -> int | None:
        return next((i for i, job in enumerate(self.running) if job is None or job.ended), None)

    def free(self) -> bool:
        """Returns whether another job may be started."""
        return self._slot() is not None

    def start(self, commands: Sequence[Sequence[str]], log: Path) -> SlurmJob:
        """Submits a job whose output is appended to ``log``."""
        slot = self._slot()
        assert slot is not None
        submitted = self.executor.submit(run_commands, [list(c) for c in commands], os.getcwd(), str(log.resolve()))
        job = SlurmJob(submitted, log)
        self.running[slot] = job
        return job
