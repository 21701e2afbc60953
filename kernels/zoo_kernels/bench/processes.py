"""Steps in processes that can die or hang without costing the rest, and the files that tell how far they are."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing import get_context, resource_tracker
from pathlib import Path
from typing import Any

import torch

import zoo_kernels
from zoo_kernels.bench.bench import Bench
from zoo_kernels.bench.clock import Clock
from zoo_kernels.bench.options import Options
from zoo_kernels.bench.record import Record, environment, write
from zoo_kernels.bench.registry import Item

POLL = 0.25  # seconds
LOST = 3  # status of a process whose GPU no longer answers
WARM = "warm"  # the role of a process that calls what will be timed and keeps no number
SAME = ("device", "gpu", "torch", "triton", "cuda", "python", "interpreted")  # of the environment

Steps = dict[str, Callable[[Bench], Iterator[Item]]]  # what a step of a name runs


class Files:
    """Results by step in a folder; what another machine or other kernels have written does not count.

    Args:
        folder: of the files.
        options: of the command line.
    """

    def __init__(self, folder: Path, options: Options) -> None:
        self.folder = folder
        about = environment(options.device)
        found = {key: about.get(key) for key in SAME} | {"scale": options.scale, "code": code_hash()}
        self.key = hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:16]

    def file(self, name: str) -> Path:
        """Where a step is."""
        return self.folder / f"{name}.json"

    def read(self, name: str) -> dict[str, Any]:
        """What is known of a step; empty if nothing is, or if it is of other kernels."""
        try:
            content: dict[str, Any] = json.loads(self.file(name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return content if content.get("key") == self.key else {}

    def done(self) -> set[str]:
        """Names of the steps that need not be run again."""
        return {file.stem for file in self.folder.glob("*.json") if self.read(file.stem).get("complete")}

    def keep(self, bench: Bench, complete: bool) -> None:
        """Write what a step has until now."""
        write(self.file(bench.piece), {"key": self.key, "complete": complete, **bench.content()})

    def append(self, name: str, where: str, told: Any) -> None:
        """Add to the errors or notes of a step; one that failed is tried again by the next call."""
        content = self.read(name) or {"key": self.key, "complete": False, "records": [], "errors": [], "notes": []}
        write(self.file(name), content | {where: [*content[where], told]})

    def interrupt(self, name: str) -> None:
        """Tell in the file of a step that a user ended it."""
        content = self.read(name)
        if content:
            content["environment"]["interrupted"] = True
            write(self.file(name), content)

    def merged(self, bench: Bench, names: Sequence[str]) -> Bench:
        """Put the results of steps into ``bench``, in the order of the names."""
        for content in filter(None, map(self.read, names)):
            bench.records += [Record(**record) for record in content["records"]]
            bench.errors += content["errors"]
            bench.notes += [text for text in content["notes"] if text not in bench.notes]
            bench.dropped += content.get("dropped", [])
        return bench


def code_hash() -> str:
    """A hash of the kernels and of what measures them."""
    digest = hashlib.sha256()
    for file in sorted(Path(zoo_kernels.__file__).parent.rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class Job:
    """Steps for one process, one after the other.

    Attributes:
        names: of the steps.
        role: what kind of steps they are, or WARM.
        patience: seconds after which a step is taken to hang.
        steps: gives what each name runs; a function at the top of a module, since another process calls it.
        folder: of the files.
    """

    names: tuple[str, ...]
    role: str
    patience: float
    steps: Callable[[Bench], Steps]
    folder: Path


Start = Callable[[Options, Job, float], Any]  # a multiprocessing.Process; with the seconds it may take


def start_process(options: Options, job: Job, seconds: float) -> Any:
    """A fresh interpreter for a job; Ctrl-C is for its parent alone."""
    process = get_context("spawn").Process(target=work, args=(options, job, seconds), daemon=True)
    resource_tracker.ensure_running()  # which unblocks the signal, so that it must not be left to the start below
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # what a child inherits
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return process


def work(options: Options, job: Job, seconds: float) -> None:
    """The body of such a process."""
    begin, files = time.monotonic(), Files(job.folder, options)
    if options.threads:
        torch.set_num_threads(options.threads)
    for name in job.names:
        left = seconds - (time.monotonic() - begin)
        if left <= 0:
            break
        bench = Bench(replace(options, minutes=left / 60), name)
        items = job.steps(bench)[name](bench)
        if job.role == WARM:
            bench.clock = Clock()
            bench.run(items)
            continue
        files.keep(bench, complete=False)
        bench.after_row = lambda bench=bench: files.keep(bench, complete=False)  # type: ignore[misc]
        bench.run(items)
        files.keep(bench, complete=not bench.dropped and not bench.lost and bench.left() > 0)
        if bench.lost:
            os._exit(LOST)


@dataclass
class Running:
    """A job with its process, the step that it is at, and since when."""

    job: Job
    process: Any
    since: float
    at: str | None = None


class Watch:
    """Runs jobs until all are done or the time is over; a process that dies or hangs costs one step.

    Args:
        options: of the command line.
        files: of the steps.
        start: starts a process.
        now: a clock, in seconds.
        sleep: waits for so many of them.
    """

    def __init__(
        self,
        options: Options,
        files: Files,
        start: Start = start_process,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.options, self.files, self.start, self.now, self.sleep = options, files, start, now, sleep
        self.broken: list[str] = []  # steps whose process did not end by itself and well

    def run(self, jobs: list[Job], seconds: float) -> None:
        """Run all of them side by side."""
        end = self.now() + seconds
        if seconds <= 0:
            return
        running: list[Running] = []
        try:
            for job in jobs:
                running.append(Running(job, self.start(self.options, job, seconds), self.now()))
            while running and self.now() < end:
                self.sleep(POLL)
                for one in running.copy():
                    ended = self._ended(one)
                    if ended is None:
                        continue
                    running.remove(one)
                    rest = replace(one.job, names=self._rest(one.job, ended))
                    if rest.names and self.now() < end:
                        running.append(Running(rest, self.start(self.options, rest, end - self.now()), self.now()))
        finally:
            for one in running:
                one.process.kill()
                for name in one.job.names:
                    if one.job.role != WARM and self.files.read(name).get("complete") is False:
                        self.broken.append(name)
                        self.files.append(name, "notes", f"{name} was cut off: its time was over")

    def _ended(self, one: Running) -> str | None:
        """Why a process has ended, empty if all is well; None while it runs. One whose step hangs is ended here."""
        if not one.process.is_alive():
            return f"its process ended with status {one.process.exitcode}" if one.process.exitcode else ""
        done = self.files.done() if one.job.role != WARM else set()
        at = next((name for name in one.job.names if name not in done), None)
        if at != one.at:
            one.at, one.since = at, self.now()
        if self.now() - one.since <= one.job.patience:
            return None
        one.process.kill()
        return f"took longer than {one.job.patience:g} seconds and was ended"

    def _rest(self, job: Job, why: str) -> tuple[str, ...]:
        """What is left to do after a process has ended, the step that it ended in excepted."""
        if job.role == WARM or not why:
            return ()
        done = self.files.done()
        rest = [name for name in job.names if name not in done]
        if rest:
            self.broken.append(rest[0])
            error = {"piece": rest[0], "name": rest[0], "error": why, "traceback": ""}
            self.files.append(rest[0], "errors", error)
            print(f"ERROR {rest[0]}: {why}", flush=True)
        return tuple(rest[1:])
