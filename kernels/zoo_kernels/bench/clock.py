"""Medians of interleaved rounds: by a wall clock, by the events of a GPU, or inside a CUDA graph."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from zoo_kernels.bench.record import Timing

Run = Callable[[int], Any]  # takes the number of the repeat, by which it picks its inputs
BUSY = 4_000_000  # cycles, about 2 ms: longer than the host takes to enqueue a call


def host_seconds(run: Run, calls: int) -> list[float]:
    """The mean time of calls on the host; a GPU is waited for only before and after them."""
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    wait()
    begin = time.perf_counter()
    for number in range(calls):
        run(number)
    took = (time.perf_counter() - begin) / calls
    wait()
    return [took]


def gpu_seconds(run: Run, calls: int) -> list[float]:
    """The time of each call between two events, while the GPU is kept busy before it.

    Gaps between launches then do not count, as they do in triton.testing.do_bench; the piece ``overhead`` is about
    those.
    """
    pairs = []
    for number in range(calls):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(BUSY)
        start.record()
        run(number)
        stop.record()
        pairs.append((start, stop))
    torch.cuda.synchronize()
    return [start.elapsed_time(stop) / 1e3 for start, stop in pairs]


def graph_seconds(run: Run, calls: int) -> list[float]:
    """The GPU's time of a call in a captured CUDA graph of many, several times, which shows that it can be captured."""
    from triton.testing import do_bench_cudagraph

    return [milliseconds / 1e3 for milliseconds in do_bench_cudagraph(partial(run, 0), return_mode="all")]


@dataclass(frozen=True)
class Clock:
    """Times functions side by side: in each round every function has its turn.

    Attributes:
        sample: seconds of so many calls, of all or of each.
        rounds: at most; slow functions get fewer, at least 2. 0: the first call is all.
        turn: seconds of a turn; faster functions are called several times.
        most: calls of a turn.
        seconds: that the turns of a function may take together.
        slow: seconds of a call from which the first one is enough.
    """

    sample: Callable[[Run, int], list[float]]
    rounds: int = 0
    turn: float = 0.02
    most: int = 10**6
    seconds: float = 15.0
    slow: float = 10.0

    def measure(self, runs: Mapping[str, Run], first: Mapping[str, list[float]]) -> dict[str, Timing]:
        """The timing of each; ``first`` are the samples of its first call."""
        samples, plans = dict(first), {}
        for who in (who for who in runs if self.rounds and first[who][0] < self.slow):
            (took,) = self.sample(runs[who], 1)  # the first call filled caches too
            calls = max(1, min(self.most, round(self.turn / max(took, 1e-7))))
            plans[who] = calls, max(2, min(self.rounds, int(self.seconds / max(took * calls, 1e-7))))
            samples[who] = []
        for number in range(self.rounds):
            for who, (calls, rounds) in plans.items():
                samples[who] += self.sample(runs[who], calls) if number < rounds else []
        return {who: Timing(statistics.median(x) * 1e3, min(x) * 1e3, max(x) * 1e3) for who, x in samples.items()}


HOST = Clock(host_seconds, rounds=7, most=200)  # a GPU takes only so many launches before the host must wait
GRAPH = Clock(graph_seconds)
CLOCKS = {  # of a device or a scale
    "cuda": Clock(gpu_seconds, rounds=5, turn=0.06, most=8, seconds=2.0, slow=0.5),
    "cpu": Clock(host_seconds, rounds=7),
    "quick": Clock(host_seconds, rounds=3, seconds=2.0),
    "dry": Clock(host_seconds),
}
