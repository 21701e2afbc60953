"""Steps in processes that can die or hang without costing the rest, and the files that tell how far they are."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import zip_longest
from multiprocessing import get_context, resource_tracker
from pathlib import Path
from typing import Any, NamedTuple

import torch

import zoo_kernels
from zoo_kernels.bench.bench import Bench, Options
from zoo_kernels.bench.check import Check
from zoo_kernels.bench.clock import Clock
from zoo_kernels.bench.record import Record, environment, write
from zoo_kernels.bench.registry import CHECKED, FIRST, Item, items_of, names_of

POLL = 0.25  # seconds
LOST = 3  # status of a process whose GPU no longer answers
SAME = ("device", "gpu", "torch", "triton", "cuda", "python", "interpreted")  # of the environment
CHECK, WARM = (
    "check-",
    "warm-",
)  # how the names of steps begin that check, or call what will be timed and keep no number
SMALL = 300  # tokens of a case that piece=first checks; longer ones belong to piece=correctness
STRIDE = 5  # a dry run takes every fifth case
GROUP = 4  # cases of a step: what a process that dies can lose


def small_checks(bench: Bench) -> dict[str, list[Check]]:
    """Small checks of every kernel in both half precisions, in groups by the name of a step; the pieces take turns."""
    pieces = []
    for name in (name for name in names_of("cuda") if name.startswith(CHECKED)):
        checks = [item for item in items_of(bench, "cuda", name) if isinstance(item, Check)]
        small = [check for check in checks if check.case.shape.length <= SMALL and not check.repeats]
        small = small[:: STRIDE if bench.dry else 1]
        groups = [small[i : i + GROUP] for i in range(0, len(small), GROUP)]
        pieces.append([(f"{CHECK}{name.removeprefix(CHECKED)}-{i}", group) for i, group in enumerate(groups)])
    return dict(filter(None, (group for turn in zip_longest(*pieces) for group in turn)))


def items(bench: Bench) -> Iterator[Item]:
    """What a piece, or a step of piece=first, runs; the same in every process."""
    if bench.options.pieces != (FIRST,):
        return items_of(bench, bench.options.suite, bench.piece)
    if bench.piece.startswith(CHECK):
        return iter(small_checks(bench)[bench.piece])
    return items_of(bench, FIRST, bench.piece.removeprefix(WARM))


class Files:
    """Results by step in a folder; what another machine or other kernels have written does not count."""

    def __init__(self, folder: Path, options: Options) -> None:
        self.folder = folder
        about = environment(options.device)
        found = {key: about.get(key) for key in SAME} | {"scale": options.scale, "code": code_hash()}
        self.key = hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:16]

    def file(self, name: str) -> Path:
        """Where a step is."""
        return self.folder / f"{name}.json"

    def read(self, name: str) -> dict[str, Any]:
        """Returns the results of a step; empty if there are none, or if they are of other kernels."""
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


class Job(NamedTuple):
    """Names of steps for one process, one after the other, each of which hangs if it takes longer than ``patience``."""

    names: tuple[str, ...]
    patience: float


Start = Callable[[Options, Files, Job, float], Any]  # a multiprocessing.Process; with the seconds it may take


def start_process(options: Options, files: Files, job: Job, seconds: float) -> Any:
    """A fresh interpreter for a job; Ctrl-C is for its parent alone."""
    process = get_context("spawn").Process(target=work, args=(options, files, job, seconds), daemon=True)
    resource_tracker.ensure_running()  # which unblocks the signal, so that it must not be left to the start below
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # what a child inherits
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return process


def work(options: Options, files: Files, job: Job, seconds: float) -> None:
    """The body of such a process."""
    end = time.monotonic() + seconds
    if options.threads:
        torch.set_num_threads(options.threads)
    for name in job.names:
        left = end - time.monotonic()
        if left <= 0:
            break
        bench = Bench(replace(options, minutes=left / 60), name)
        if name.startswith(WARM):
            bench.clock = Clock()
        files.keep(bench, complete=False)
        bench.after_row = partial(files.keep, bench, complete=False)
        bench.run(items(bench))
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

    def run(self, jobs: Sequence[Job], seconds: float) -> None:
        """Run all of them side by side."""
        end, running, waiting = self.now() + seconds, list[Running](), list(jobs)
        try:
            while (waiting or running) and self.now() < end:
                for job in waiting:
                    process = self.start(self.options, self.files, job, end - self.now())
                    running.append(Running(job, process, self.now()))
                self.sleep(POLL)
                ended = {one.job: why for one in running if (why := self._ended(one)) is not None}
                running = [one for one in running if one.job not in ended]
                waiting = [rest for job, why in ended.items() if why and (rest := self._rest(job, why)).names]
        finally:
            for one in running:
                one.process.kill()
                for name in one.job.names:
                    if self.files.read(name).get("complete") is False:
                        self.broken.append(name)
                        self.files.append(name, "notes", f"{name} was cut off: its time was over")

    def _ended(self, one: Running) -> str | None:
        """Why a process has ended, empty if all is well; None while it runs. One whose step hangs is ended here."""
        if not one.process.is_alive():
            return f"its process ended with status {one.process.exitcode}" if one.process.exitcode else ""
        done = self.files.done()
        at = next((name for name in one.job.names if name not in done), None)
        if at != one.at:
            one.at, one.since = at, self.now()
        if self.now() - one.since <= one.job.patience:
            return None
        one.process.kill()
        return f"took longer than {one.job.patience:g} seconds and was ended"

    def _rest(self, job: Job, why: str) -> Job:
        """What is left to do after a process has ended, the step that it ended in excepted."""
        done = self.files.done()
        at, *rest = [name for name in job.names if name not in done] or [""]
        if at:
            self.broken.append(at)
            self.files.append(at, "errors", {"piece": at, "name": at, "error": why, "traceback": ""})
            print(f"ERROR {at}: {why}", flush=True)
        return job._replace(names=tuple(rest))
