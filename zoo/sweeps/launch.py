"""Launchers of runs: processes of this machine, with a share of its GPUs or cores each."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import torch

from zoo.config import ConfigError
from zoo.paths import command as shell_command

LOG = "output.log"
TAIL = 65_536  # bytes of a log that are looked at for the reason of a failure


class Job(Protocol):
    """Protocol of jobs: commands of one run, one after the other until one fails.

    Attributes:
        codes: exit statuses so far.
        ended: result of the last :meth:`poll`; a slot is free only after the end of its job has been seen.
    """

    codes: list[int]
    ended: bool

    def poll(self) -> bool:
        """Returns whether the job has ended; starts the next command where one has ended."""
        ...

    def stop(self, hard: bool = False) -> None:
        """Asks the running command to save and end, or with ``hard`` kills it; no further command is started."""
        ...

    def fault(self) -> str:
        """Returns why the last command failed."""
        ...


class Launcher(Protocol):
    """Protocol of launchers, which run a limited number of jobs at a time."""

    def free(self) -> bool:
        """Returns whether another job may be started."""
        ...

    def start(self, commands: Sequence[Sequence[str]], log: Path) -> Job:
        """Starts a job whose output is appended to ``log``."""
        ...


def start_process(
    command: Sequence[str], log: Path, environment: dict[str, str], folder: str | None = None, own_group: bool = True
) -> subprocess.Popen[bytes]:
    """Starts a process; with a group of its own, Ctrl-C in a terminal does not reach it."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        output.write(f"$ {shell_command(*command)}\n".encode())
        output.flush()
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**environment, "HYDRA_FULL_ERROR": "1"},  # or the last line is about this variable
            cwd=folder,
            start_new_session=own_group,
        )


def failure_reason(log: Path, code: int) -> str:
    """Returns the last line of a log with ``error:``, else the last line, and the signal, if one ended the process."""
    lines: list[str] = []
    if log.is_file():
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - TAIL))
            lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    start = max((i for i, line in enumerate(lines) if line.startswith("$ ")), default=-1)
    lines = lines[start + 1 :]
    last = next((line for line in reversed(lines) if line.startswith("error:")), lines[-1] if lines else "")
    if code >= 0:
        return last or f"exit status {code}"
    killed = f"killed by {signal.Signals(-code).name}" + (" (out of memory?)" if -code == signal.SIGKILL else "")
    return f"{killed}; last line: {last}" if last else killed


class LocalJob:
    """Commands as processes of this machine."""

    def __init__(self, commands: Sequence[Sequence[str]], log: Path, environment: dict[str, str]) -> None:
        self.commands, self.log, self.environment = list(commands), log, environment
        self.codes: list[int] = []
        self.stopped = self.ended = False
        self.process = start_process(self.commands[0], log, environment)

    def poll(self) -> bool:
        """Returns whether the job has ended; starts the next command where one has ended."""
        code = None if self.ended else self.process.poll()
        if code is not None:
            self.codes.append(code)
            self.ended = code != 0 or self.stopped or len(self.codes) == len(self.commands)
            if not self.ended:
                self.process = start_process(self.commands[len(self.codes)], self.log, self.environment)
                if self.stopped:  # by a signal in the meantime
                    self.stop()
        return self.ended

    def stop(self, hard: bool = False) -> None:
        """Asks the first process to save and end, or with ``hard`` kills the process group.

        The first process tells its children.
        """
        self.stopped = True
        if self.ended:
            return
        with suppress(ProcessLookupError):
            if hard:
                os.killpg(self.process.pid, signal.SIGKILL)
            else:
                self.process.send_signal(signal.SIGTERM)

    def fault(self) -> str:
        """Returns why the last command failed."""
        return failure_reason(self.log, self.codes[-1])


class LocalLauncher:
    """Launcher of ``jobs`` local processes at a time, each with a share of ``devices``, or else of the cores."""

    def __init__(self, jobs: int, devices: Sequence[str] = (), devices_per_arm: int | None = None) -> None:
        self.shares = share_devices(jobs, devices, devices_per_arm)
        self.running: list[LocalJob | None] = [None] * jobs

    def _slot(self) -> int | None:
        return next((i for i, job in enumerate(self.running) if job is None or job.ended), None)

    def free(self) -> bool:
        """Returns whether another job may be started."""
        return self._slot() is not None

    def start(self, commands: Sequence[Sequence[str]], log: Path) -> LocalJob:
        """Starts a job whose output is appended to ``log``."""
        slot = self._slot()
        assert slot is not None
        job = LocalJob(commands, log, {**os.environ, **self.shares[slot]})
        self.running[slot] = job
        return job


def share_devices(jobs: int, devices: Sequence[str], devices_per_arm: int | None) -> list[dict[str, str]]:
    """Returns the environment of each of ``jobs`` processes.

    GPUs are shared where there are fewer groups of them than jobs.

    Raises:
        ConfigError: if there are fewer devices than one run is to have, or no job.
    """
    if not isinstance(jobs, int) or jobs < 1:
        raise ConfigError(f"sweep.jobs={jobs}: expected a whole number of at least 1.")
    if not devices:
        if "OMP_NUM_THREADS" in os.environ:
            return [{}] * jobs
        return [{"OMP_NUM_THREADS": str(max(1, _cores() // jobs))}] * jobs
    each = devices_per_arm or max(1, len(devices) // jobs)
    if not 1 <= each <= len(devices):
        raise ConfigError(f"sweep.devices_per_arm={each}: expected 1 to {len(devices)}, the devices of this machine.")
    groups = [",".join(devices[i : i + each]) for i in range(0, len(devices) - each + 1, each)]
    return [{"CUDA_VISIBLE_DEVICES": groups[i % len(groups)]} for i in range(jobs)]


def visible_devices() -> list[str]:
    """Returns the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip()] if torch.cuda.is_available() else []
    return [str(i) for i in range(torch.cuda.device_count())]


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
