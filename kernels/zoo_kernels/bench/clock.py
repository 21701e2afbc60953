"""Medians of interleaved rounds: a wall clock, the events of a GPU, the host alone, CUDA graphs, and one dry call."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch

Run = Callable[[int], Any]  # takes the number of the repeat, by which it picks its inputs


class Timing(NamedTuple):
    """Milliseconds of one call: median, smallest and largest of all samples."""

    median: float
    low: float
    high: float


class Plan(NamedTuple):
    """How a function is timed: calls of a round, rounds, host seconds of a call, and samples that are there already."""

    calls: int
    rounds: int
    host: float = 0.0
    samples: tuple[float, ...] = ()


class Clock:
    """Times functions that have been called before, side by side: in each round every function has its turn.

    As it is, the clock of a dry run: one call of each, for that it runs is all that is of interest.
    """

    rounds = 1

    def measure(
        self, runs: Mapping[str, Run], once: Collection[str] = (), limit: float = math.inf
    ) -> dict[str, Timing]:
        """Timing of each; those in ``once`` are called a single time, and may be new.

        ``limit``: seconds after which no further round begins; the first one is made in any case.
        """
        begin = time.perf_counter()
        plans = {who: Plan(1, 1) if who in once else self._plan(run) for who, run in runs.items()}
        samples = {who: list(plan.samples) for who, plan in plans.items()}
        for number in range(self.rounds):
            if number and time.perf_counter() - begin > limit:
                break
            for who, plan in plans.items():
                if number < plan.rounds:
                    samples[who] += self._sample(runs[who], plan)
        return {who: Timing(statistics.median(x) * 1e3, min(x) * 1e3, max(x) * 1e3) for who, x in samples.items()}

    def _plan(self, run: Run) -> Plan:
        """How a function will be timed, for which it may be called."""
        return Plan(1, 1)

    def _sample(self, run: Run, plan: Plan) -> list[float]:
        """Seconds of a call in one round: their mean, or those of each call."""
        begin = time.perf_counter()
        for number in range(plan.calls):
            run(number)
        return [(time.perf_counter() - begin) / plan.calls]


class WallClock(Clock):
    """Host time of calls that return when they are done.

    Args:
        rounds: at most.
        seconds: that the samples of one function may take together; slow functions get fewer rounds, at least 2.
        least: seconds of a sample; faster functions are called several times for one.
    """

    def __init__(self, rounds: int = 7, seconds: float = 15.0, least: float = 0.02) -> None:
        self.rounds, self.seconds, self.least = rounds, seconds, least

    def _plan(self, run: Run) -> Plan:
        took = self._sample(run, Plan(1, 1))[0]
        calls = max(1, round(self.least / max(took, 1e-7)))
        return Plan(calls, max(2, min(self.rounds, int(self.seconds / (took * calls)))))


class HostClock(Clock):
    """Host time of a call that does not wait for the GPU, which is waited for only after each round."""

    rounds, calls = 7, 200

    def _plan(self, run: Run) -> Plan:
        for number in range(5):
            run(number)
        return Plan(self.calls, self.rounds)

    def _sample(self, run: Run, plan: Plan) -> list[float]:
        wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
        wait()
        found = super()._sample(run, plan)
        wait()
        return found


class EventClock(Clock):
    """GPU time between two events, without the time that the host needs to launch.

    Before each call the GPU is kept busy for longer than the host takes to enqueue it, so that gaps between launches
    do not count; the piece ``overhead`` is about those.

    Args:
        rounds: at most.
        seconds: that the samples of one function shall take together.
        calls: at most, in all rounds.
        slow: seconds of a call from which two are enough, the first of them to plan with.
    """

    def __init__(self, rounds: int = 5, seconds: float = 0.3, calls: int = 40, slow: float = 0.5) -> None:
        self.rounds, self.seconds, self.calls, self.slow = rounds, seconds, calls, slow

    def _plan(self, run: Run) -> Plan:
        took = self._sample(run, Plan(1, 1))[0]
        if took > self.slow:
            return Plan(1, 1, samples=(took,))
        for number in range(2):
            run(number)
        torch.cuda.synchronize()
        begin = time.perf_counter()
        run(0)
        host = time.perf_counter() - begin
        torch.cuda.synchronize()
        took = self._sample(run, Plan(1, 1, host))[0]
        wanted = min(self.calls, round(self.seconds / max(took, 1e-6)))
        return Plan(max(1, wanted // self.rounds), self.rounds, host)

    def _sample(self, run: Run, plan: Plan) -> list[float]:
        cycles = int(min(1.5 * plan.host + 2e-5, 1e-2) * 2e9)  # of a clock of up to 2 GHz
        pairs = []
        for number in range(plan.calls):
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda._sleep(cycles)
            start.record()
            run(number)
            stop.record()
            pairs.append((start, stop))
        torch.cuda.synchronize()
        return [start.elapsed_time(stop) / 1e3 for start, stop in pairs]


class GraphClock(EventClock):
    """GPU time of one call inside a captured CUDA graph of many, which shows that it can be captured."""

    INSIDE = 20

    def measure(
        self, runs: Mapping[str, Run], once: Collection[str] = (), limit: float = math.inf
    ) -> dict[str, Timing]:
        """Timing of a call of each; the graph is captured first."""
        replays = {who: captured(partial(run, 0), self.INSIDE)[0].replay for who, run in runs.items()}
        found = super().measure({who: lambda i, r=replay: r() for who, replay in replays.items()}, once, limit)  # type: ignore[misc]
        return {who: Timing(*(x / self.INSIDE for x in timing)) for who, timing in found.items()}


def captured(call: Callable[[], Any], times: int = 1) -> tuple[Any, Any]:
    """A CUDA graph of ``times`` calls after one to warm up, and what the last of them returns."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()
    torch.cuda.current_stream().wait_stream(stream)
    graph, output = torch.cuda.CUDAGraph(), None
    with torch.cuda.graph(graph):
        for _ in range(times):
            output = call()
    return graph, output


def clock_of(device: torch.device, scale: str) -> Clock:
    """The clock that goes with a device and a table of shapes."""
    if scale == "dry":
        return Clock()
    if device.type == "cuda":
        return EventClock()
    return WallClock(rounds=3, seconds=2.0) if scale == "quick" else WallClock()
