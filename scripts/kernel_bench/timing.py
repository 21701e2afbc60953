"""Medians of interleaved rounds: a wall clock for the CPU, events for a GPU, and one repeat for a dry run."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple, Protocol

import torch

Run = Callable[[int], Any]  # takes the number of the repeat, by which it picks its inputs


class Timing(NamedTuple):
    """Milliseconds of one call: median, smallest and largest of all samples."""

    median: float
    low: float
    high: float


class Timer(Protocol):
    """Times functions that have been called before, side by side."""

    def measure(
        self, runs: Mapping[str, Run], once: Collection[str] = (), limit: float = math.inf
    ) -> dict[str, Timing]:
        """Timing of each; those in ``once`` are called a single time, and may be new.

        ``limit``: seconds after which no further round begins; the first one is made in any case.
        """
        ...


def _summary(samples: Mapping[str, list[float]]) -> dict[str, Timing]:
    return {name: Timing(statistics.median(x) * 1e3, min(x) * 1e3, max(x) * 1e3) for name, x in samples.items() if x}


class WallClock:
    """Host time of calls that return when they are done.

    Args:
        rounds: at most; each function is called in turn in each.
        seconds: that the samples of one function may take together; slow functions get fewer rounds, at least 2.
        least: seconds of a sample; faster functions are called several times for one.
    """

    def __init__(self, rounds: int = 7, seconds: float = 15.0, least: float = 0.02) -> None:
        self.rounds, self.seconds, self.least = rounds, seconds, least

    def measure(
        self, runs: Mapping[str, Run], once: Collection[str] = (), limit: float = math.inf
    ) -> dict[str, Timing]:
        """Timing of each; those in ``once`` are called a single time."""
        begin = time.perf_counter()
        samples: dict[str, list[float]] = {name: [] for name in runs}
        plans: dict[str, tuple[int, int]] = {}
        for name, run in runs.items():
            if name in once:
                samples[name].append(self._time(run, 1))
                continue
            took = self._time(run, 1)
            calls = max(1, round(self.least / max(took, 1e-7)))
            plans[name] = calls, max(2, min(self.rounds, int(self.seconds / (took * calls))))
        for number in range(self.rounds):
            if number and time.perf_counter() - begin > limit:
                break
            for name, (calls, rounds) in plans.items():
                if number < rounds:
                    samples[name].append(self._time(runs[name], calls))
        return _summary(samples)

    @staticmethod
    def _time(run: Run, calls: int) -> float:
        begin = time.perf_counter()
        for number in range(calls):
            run(number)
        return (time.perf_counter() - begin) / calls


class DryClock:
    """One call of each: that it runs is all that is of interest."""

    def measure(
        self, runs: Mapping[str, Run], once: Collection[str] = (), limit: float = math.inf
    ) -> dict[str, Timing]:
        """Host time of a single call of each."""
        samples = {}
        for name, run in runs.items():
            begin = time.perf_counter()
            run(0)
            samples[name] = [time.perf_counter() - begin]
        return _summary(samples)


class Plan(NamedTuple):
    """How a function is timed: calls of a round, rounds, host seconds of a call, and samples that are there already."""

    calls: int
    rounds: int
    host: float
    samples: list[float]


class EventClock:
    """GPU time between two events, without the time that the host needs to launch.

    Before each call the GPU is kept busy for longer than the host takes to enqueue it, so that gaps between launches
    do not count; the piece ``overhead`` is about those.

    Args:
        rounds: in each of which every function has its turn.
        seconds: that the samples of one function shall take together.
        calls: at most, in all rounds.
        slow: seconds of a call from which two are enough, the first of them to plan with.
    """

    def __init__(self, rounds: int = 5, seconds: float = 0.3, calls: int = 40, slow: float = 0.5) -> None:
        self.rounds, self.seconds, self.calls, self.slow = rounds, seconds, calls, slow

    def measure(
        self, runs: Mapping[str, Run], once: Collection[str] = (), limit: float = math.inf
    ) -> dict[str, Timing]:
        """Timing of each; those in ``once`` are called a single time."""
        begin = time.perf_counter()
        plans = {name: self._plan(run) for name, run in runs.items() if name not in once}
        samples = {name: list(plans[name].samples) if name in plans else [] for name in runs}
        for name in once:
            samples[name] += self._time(runs[name], 1, 0.0)
        for number in range(self.rounds):
            if number and time.perf_counter() - begin > limit:
                break
            for name, plan in plans.items():
                if number < plan.rounds:
                    samples[name] += self._time(runs[name], plan.calls, plan.host)
        return _summary(samples)

    def _plan(self, run: Run) -> Plan:
        took = self._time(run, 1, 0.0)[0]
        if took > self.slow:
            return Plan(1, 1, 0.0, [took])
        for number in range(2):
            run(number)
        torch.cuda.synchronize()
        begin = time.perf_counter()
        run(0)
        host = time.perf_counter() - begin
        torch.cuda.synchronize()
        took = self._time(run, 1, host)[0]
        wanted = min(self.calls, round(self.seconds / max(took, 1e-6)))
        return Plan(max(1, wanted // self.rounds), self.rounds, host, [])

    @staticmethod
    def _time(run: Run, calls: int, host: float) -> list[float]:
        cycles = int(min(1.5 * host + 2e-5, 1e-2) * 2e9)  # of a clock of up to 2 GHz
        pairs = []
        for number in range(calls):
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda._sleep(cycles)
            start.record()
            run(number)
            stop.record()
            pairs.append((start, stop))
        torch.cuda.synchronize()
        return [start.elapsed_time(stop) / 1e3 for start, stop in pairs]


def host_time(run: Run, calls: int) -> list[float]:
    """Host seconds per call of several runs of ``calls`` calls, the GPU being waited for only after each run."""
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    samples = []
    for _ in range(1 if calls == 1 else 7):
        wait()
        begin = time.perf_counter()
        for number in range(calls):
            run(number)
        samples.append((time.perf_counter() - begin) / calls)
    wait()
    return samples


def timing_of(samples: list[float]) -> Timing:
    """Timing from seconds."""
    return _summary({"": samples})[""]


def timer_for(device: torch.device, scale: str) -> Timer:
    """The clock that goes with a device and a table of shapes."""
    if scale == "dry":
        return DryClock()
    if device.type == "cuda":
        return EventClock()
    return WallClock(rounds=3, seconds=2.0) if scale == "quick" else WallClock()
