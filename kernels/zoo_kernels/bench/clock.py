"""Medians of interleaved rounds: a wall clock, the events of a GPU, CUDA graphs, and one dry call."""

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
    """How a function is timed: rounds, what gives the seconds of the calls of a round, and samples that exist."""

    rounds: int
    sample: Callable[[], list[float]]
    samples: tuple[float, ...] = ()


class Clock:
    """Times functions that have been called before, side by side: in each round every function has its turn.

    As it is, the clock of a dry run: one call of each, for that it runs is all that is of interest.
    """

    def measure(
        self, runs: Mapping[str, Run], once: Collection[str] = (), limit: float = math.inf
    ) -> dict[str, Timing]:
        """Timing of each; those in ``once`` are called a single time, and may be new.

        ``limit``: seconds after which no further round begins; the first one is made in any case.
        """
        begin = time.perf_counter()
        plans = {who: Clock._plan(self, run) if who in once else self._plan(run) for who, run in runs.items()}
        samples = {who: list(plan.samples) for who, plan in plans.items()}
        for number in range(max((plan.rounds for plan in plans.values()), default=0)):
            if number and time.perf_counter() - begin > limit:
                break
            for who, plan in plans.items():
                samples[who] += plan.sample() if number < plan.rounds else []
        return {who: Timing(statistics.median(x) * 1e3, min(x) * 1e3, max(x) * 1e3) for who, x in samples.items()}

    def _plan(self, run: Run) -> Plan:
        """How a function will be timed, for which it may be called."""
        return Plan(1, partial(self._sample, run))

    def _sample(self, run: Run, calls: int = 1) -> list[float]:
        """Seconds of a call: their mean, or those of each."""
        begin = time.perf_counter()
        for number in range(calls):
            run(number)
        return [(time.perf_counter() - begin) / calls]


class WallClock(Clock):
    """Host time of a call; a GPU is waited for only before and after each sample.

    Args:
        rounds: at most; slow functions get fewer, at least 2.
        seconds: that the samples of one function may take together.
        least: seconds of a sample; faster functions are called several times for one.
        most: calls of a sample; a GPU takes only so many launches before the host must wait.
    """

    def __init__(self, rounds: int = 7, seconds: float = 15.0, least: float = 0.02, most: int = 10**6) -> None:
        self.rounds, self.seconds, self.least, self.most = rounds, seconds, least, most

    def _plan(self, run: Run) -> Plan:
        took = self._sample(run)[0]
        calls = max(1, min(self.most, round(self.least / max(took, 1e-7))))
        rounds = max(2, min(self.rounds, int(self.seconds / (took * calls))))
        return Plan(rounds, partial(self._sample, run, calls))

    def _sample(self, run: Run, calls: int = 1) -> list[float]:
        wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
        wait()
        found = super()._sample(run, calls)
        wait()
        return found


class EventClock(Clock):
    """GPU time between two events, without the time that the host needs to launch.

    Before each call the GPU is kept busy for longer than the host takes to enqueue it, so that gaps between launches
    do not count (as they do in triton.testing.do_bench); the piece ``overhead`` is about those.

    Args:
        rounds: at most.
        seconds: that the samples of one function shall take together.
        calls: at most, in all rounds.
        slow: seconds of a call from which two are enough, the first of them to plan with.
    """

    def __init__(self, rounds: int = 5, seconds: float = 0.3, calls: int = 40, slow: float = 0.5) -> None:
        self.rounds, self.seconds, self.calls, self.slow = rounds, seconds, calls, slow

    def _plan(self, run: Run) -> Plan:
        took = self._sample(run)[0]
        if took > self.slow:
            return Plan(1, partial(self._sample, run), (took,))
        for number in range(2):
            run(number)
        torch.cuda.synchronize()
        begin = time.perf_counter()
        run(0)
        host = time.perf_counter() - begin
        torch.cuda.synchronize()
        took = self._sample(run, 1, host)[0]
        wanted = min(self.calls, round(self.seconds / max(took, 1e-6)))
        return Plan(self.rounds, partial(self._sample, run, max(1, wanted // self.rounds), host))

    def _sample(self, run: Run, calls: int = 1, host: float = 0.0) -> list[float]:
        """Those of each call, of which the host takes ``host`` seconds to enqueue one."""
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


class GraphClock(Clock):
    """GPU time of one call inside a captured CUDA graph of many, which shows that it can be captured."""

    def measure(
        self, runs: Mapping[str, Run], once: Collection[str] = (), limit: float = math.inf
    ) -> dict[str, Timing]:
        """Timing of a call of each, one after the other."""
        from triton.testing import do_bench_cudagraph

        return {who: Timing(*do_bench_cudagraph(partial(run, 0), quantiles=(0.5, 0, 1))) for who, run in runs.items()}


HOST = WallClock(most=200)


def clock_of(device: torch.device, scale: str) -> Clock:
    """The clock that goes with a device and a table of shapes."""
    if scale == "dry":
        return Clock()
    if device.type == "cuda":
        return EventClock()
    return WallClock(rounds=3, seconds=2.0) if scale == "quick" else WallClock()
