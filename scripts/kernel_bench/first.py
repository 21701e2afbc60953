"""``piece=first``: what the first minutes on a GPU are for, in processes that can die or hang without costing the rest.

First, side by side, every kernel is compiled and checked by several processes, while others call what will be timed, so
that its binaries lie in Triton's cache. Then one process alone times, the most telling first. Each step has a file of
its own, written as it goes; a second call runs what is missing. Kernels that have changed since make all of it missing.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context, resource_tracker
from typing import Protocol

from kernel_bench.bench import Bench, write
from kernel_bench.first_files import Files
from kernel_bench.first_steps import CHECKS, SPEEDS, Step, steps
from kernel_bench.options import FIRST, Options
from kernel_bench.pace import at_most
from kernel_bench.report import table, verdict
from kernel_bench.timing import DryClock

WARM = "warm"  # the role of a process that calls what will be timed and keeps no number
CHECKING = 60.0  # seconds at most for what runs side by side
SHARE = 0.3  # of all seconds, if those are few
MARGIN = 4.0  # seconds for ending the processes and telling what was found
POLL = 0.25
STEP = {CHECKS: 40.0, SPEEDS: 90.0, WARM: 60.0}  # seconds after which a step is taken to hang
LOST = 3  # status of a process whose GPU no longer answers


class Process(Protocol):
    """What is needed of ``multiprocessing.Process``."""

    exitcode: int | None

    def is_alive(self) -> bool:
        """Whether it still runs."""
        ...

    def kill(self) -> None:
        """End it at once."""
        ...


Start = Callable[[Options, Sequence[str], str, float], Process]  # options, names of steps, role, seconds to go


def start_process(options: Options, names: Sequence[str], role: str, seconds: float) -> Process:
    """A fresh interpreter that runs some steps, one after the other; Ctrl-C is for its parent alone."""
    process = get_context("spawn").Process(target=work, args=(options, tuple(names), role, seconds), daemon=True)
    resource_tracker.ensure_running()  # its start lifts the block of SIGINT below: it must not happen inside
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # what a child inherits
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return process


def work(options: Options, names: Sequence[str], role: str, seconds: float) -> None:
    """The body of such a process."""
    begin = time.monotonic()
    files = Files(options)
    known = {step.name: step for step in steps(Bench(options, FIRST))}
    for name in names:
        left = seconds - (time.monotonic() - begin)
        if left > 0:
            bench = Bench(replace(options, minutes=left / 60), name)
            (_warm if role == WARM else partial(_run, files))(bench, known[name])
            if bench.lost:
                os._exit(LOST)


def _warm(bench: Bench, step: Step) -> None:
    bench.timer = DryClock()
    with bench.guard(bench.piece):
        step.run(bench)


def _run(files: Files, bench: Bench, step: Step) -> None:
    files.keep(bench, complete=False)
    bench.after_row = lambda: files.keep(bench, complete=False)
    with bench.guard(step.name), at_most(bench.left()):
        step.run(bench)
    files.keep(bench, complete=not bench.dropped and not bench.lost and bench.left() > 0)


@dataclass
class Running:
    """A process with its steps, the one that it is at, and since when."""

    process: Process
    names: list[str]
    role: str
    since: float
    at: str | None = None


class First:
    """The parent of all: it starts processes, ends them in time, and tells what was found.

    Args:
        options: of the command line; ``seconds`` is what all of it may take.
        start: starts a process.
        now: a clock, in seconds.
        sleep: waits for so many of them.
    """

    def __init__(
        self,
        options: Options,
        start: Start = start_process,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.options, self.start, self.now, self.sleep = options, start, now, sleep
        self.begin = now()
        self.files = Files(options)
        self.bench = Bench(options, FIRST)
        self.steps = steps(self.bench)

    def run(self) -> Bench:
        """All that is missing, as far as the time goes; the results, earlier ones among them."""
        interrupted = False
        told = len(self.files.done())
        print(f"first: {told} of {len(self.steps)} steps are done already", flush=True)
        try:
            self._check()
            self._in_turn(self._missing(SPEEDS), self._left())
            self._side_by_side(self._missing(CHECKS), [], self._left())  # those that the first minute had no time for
        except KeyboardInterrupt:
            interrupted = True
        return self._tell(interrupted)

    def _left(self) -> float:
        return self.options.seconds - MARGIN - (self.now() - self.begin)

    def _missing(self, kind: str) -> list[str]:
        done = self.files.done()
        names = [step.name for step in self.steps if step.kind == kind and step.name not in done]
        failed = {name for name in names if (self.files.read(name) or {}).get("errors")}
        return sorted(names, key=failed.__contains__)  # what failed before comes last

    def _check(self) -> None:
        limit = min(CHECKING, SHARE * self.options.seconds)
        self._side_by_side(self._missing(CHECKS), self._missing(SPEEDS), min(limit, self._left()))

    def _side_by_side(self, checks: list[str], warm: list[str], seconds: float) -> None:
        """Check with as many processes as there are cores; beside them, call once what will be timed."""
        cores = 2 if self.options.dry else os.cpu_count() or 1
        callers = warm if cores > 2 * len(warm) else []  # few cores are for the checks alone
        sharing = max(1, min(cores - len(callers), len(checks)))
        lists = [(checks[i::sharing], CHECKS) for i in range(sharing) if checks[i::sharing]]
        self._watch(lists + [([name], WARM) for name in callers], seconds)

    def _in_turn(self, names: list[str], seconds: float) -> None:
        """Time with one process, alone on the machine."""
        self._watch([(names, SPEEDS)] if names else [], seconds)

    def _watch(self, lists: list[tuple[list[str], str]], seconds: float) -> None:
        """Run lists of steps until all are done or the time is over; a process that dies costs one step."""
        end = self.now() + seconds
        if seconds <= 0 or not lists:
            return
        running = [Running(self.start(self.options, n, role, seconds), n, role, self.now()) for n, role in lists]
        try:
            while running and self.now() < end:
                self.sleep(POLL)
                for one in running.copy():
                    ended = self._ended(one)
                    if ended is None:
                        continue
                    running.remove(one)
                    rest = self._after(one, ended)
                    if rest and self.now() < end:
                        again = self.start(self.options, rest, one.role, end - self.now())
                        running.append(Running(again, rest, one.role, self.now()))
        finally:
            for one in running:
                one.process.kill()
                if one.role != WARM:
                    self.files.note_cut(one.names, "was cut off: the time was over")

    def _ended(self, one: Running) -> str | None:
        """Why a process has ended, empty if all is well; None while it runs. One whose step hangs is ended here."""
        if not one.process.is_alive():
            return f"its process ended with status {one.process.exitcode}" if one.process.exitcode else ""
        done = self.files.done() if one.role != WARM else set()
        at = next((name for name in one.names if name not in done), None)
        if at != one.at:
            one.at, one.since = at, self.now()
        limit = STEP[one.role]
        if self.now() - one.since <= limit:
            return None
        one.process.kill()
        return f"took longer than {limit:g} seconds and was ended"

    def _after(self, one: Running, why: str) -> list[str]:
        """What is left to do after a process has ended, the step that it ended in excepted."""
        if one.role == WARM or not why:
            return []
        done = self.files.done()
        rest = [name for name in one.names if name not in done]
        if rest:
            self.files.fail(rest[0], why)
            print(f"ERROR {rest[0]}: {why}", flush=True)
        return rest[1:]

    def _tell(self, interrupted: bool) -> Bench:
        """Merge the files of the steps into one, and print the tables."""
        bench = self.files.merged(self.bench, [step.name for step in self.steps])
        missing = self._missing(CHECKS) + self._missing(SPEEDS)
        bench.dropped = missing
        if self.options.out is not None:
            content = bench.content(interrupted)
            content["environment"]["seconds"] = round(self.now() - self.begin, 1)
            write(self.options.out / f"{FIRST}.json", content)
        print(f"\n{table(bench, str(self.files.folder))}\n{verdict([bench])}; results: {self.files.folder}", flush=True)
        if missing:
            print(
                f"{len(missing)} of {len(self.steps)} steps are missing: the same command goes on with them", flush=True
            )
        if interrupted:
            raise KeyboardInterrupt
        return bench


def run_first(options: Options) -> None:
    """The piece as the command line runs it."""
    First(options).run()
