"""Steps in processes that can die or hang without costing the rest."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import get_context, resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any, cast

from zoo_kernels.bench.results import Results

Work = Callable[[tuple[str, ...], float, Connection], None]  # names of steps, seconds; it sends (name, found)


@dataclass
class Child:
    """A process that does steps one after the other, and is ended when it is silent for too long.

    Attributes:
        names: of the steps that it has not finished.
        process: of the standard library.
        heard: when it last sent something.
    """

    names: list[str]
    process: Any
    heard: float


class Watch:
    """Runs steps in processes; one that dies or hangs costs the step that it is at.

    Args:
        results: where everything goes that the processes send.
        work: the body of a process.
        context: how processes are started.
    """

    def __init__(self, results: Results, work: Work, context: Any = None) -> None:
        self.results, self.work, self.context = results, work, context or get_context("spawn")

    def run(self, jobs: Sequence[Sequence[str]], patience: float, seconds: float) -> None:
        """Run jobs of several steps side by side until all are done or the time is over.

        Args:
            jobs: steps of a process each.
            patience: seconds of silence after which a process is ended.
            seconds: that all of it may take.
        """
        end, running = time.monotonic() + seconds, dict[Connection, Child]()
        waiting = [list(names) for names in jobs if names]
        try:
            while (waiting or running) and (left := end - time.monotonic()) > 0:
                for names in waiting:
                    running |= self._start(names, left)
                waiting = []
                soonest = min(child.heard for child in running.values()) + patience - time.monotonic()
                for pipe in wait(list(running), max(0.0, min(left, soonest))):
                    waiting += self._hear(cast(Connection, pipe), running)
                for pipe, child in list(running.items()):
                    if time.monotonic() - child.heard > patience:
                        waiting += self._end(running.pop(pipe), f"was silent for {patience:g} seconds and was ended")
        finally:
            for child in running.values():
                child.process.kill()
                child.process.join()
                if child.names and (found := self.results.found.get(child.names[0])):
                    found.notes.append(f"{child.names[0]} was cut off: its time was over")

    def _start(self, names: list[str], seconds: float) -> dict[Connection, Child]:
        """A process for steps; Ctrl-C is for its parent alone."""
        here, there = self.context.Pipe(duplex=False)
        process = self.context.Process(target=self.work, args=(tuple(names), seconds, there), daemon=True)
        resource_tracker.ensure_running()  # which unblocks the signal, so that it must not be left to the start below
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # what a child inherits
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        there.close()
        return {here: Child(names, process, time.monotonic())}

    def _hear(self, pipe: Connection, running: dict[Connection, Child]) -> list[list[str]]:
        """Store what a process sent; the steps that are left if it has ended badly."""
        child = running[pipe]
        try:
            name, found = pipe.recv()
        except EOFError:
            del running[pipe]
            child.process.join()
            status = child.process.exitcode
            return self._end(child, f"its process ended with status {status}") if status else []
        child.heard = time.monotonic()
        child.names = child.names[child.names.index(name) :]
        self.results.keep(name, found)
        if found.complete:
            child.names.remove(name)
        return []

    def _end(self, child: Child, why: str) -> list[list[str]]:
        """End a process; the steps behind the one that it was at."""
        child.process.kill()
        child.process.join()
        if child.names:
            self.results.fail(child.names[0], why)
        return [child.names[1:]] if child.names[1:] else []
