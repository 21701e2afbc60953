"""Rows of speed: implementations timed side by side on the same inputs, and what is computed from their times."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from zoo_kernels.bench.bench import Bench
from zoo_kernels.bench.case import Case, Forms, given
from zoo_kernels.bench.clock import Clock
from zoo_kernels.bench.record import BACKWARD, BOTH, FORWARD, Record, Shape, Timing
from zoo_kernels.bench.registry import piece

Goals = Mapping[str, str | None]  # a target by direction
NO_GOALS: Goals = {}
UNITS = {FORWARD: 2.0, BACKWARD: 5.0, BOTH: 7.0}  # FLOPs per causal pair of a head, in units of twice the head width


def each_way(goal: str) -> Goals:
    """Goals with the same target in every direction."""
    return dict.fromkeys(UNITS, goal)


def flops(shape: Shape, direction: str) -> float:
    """FLOPs of exact causal attention: ``4 B H T^2 D / 2`` forward, 2.5 times as many backward."""
    return UNITS[direction] * shape.numbers * float(shape.length)


class Ceiling(NamedTuple):
    """A copy of ``size`` numbers, or the product of two square matrices of random numbers."""

    name: str
    size: int

    def __str__(self) -> str:
        return f"{self.name} {self.size}"

    def run(self, bench: Bench) -> None:
        """Measure bytes or FLOPs per second; the fastest counts."""
        size, copies = self.size, self.name == "copy"
        shape = (size,) if copies else (size, size)
        a, b = (torch.randn(shape, device=bench.device, dtype=bench.dtype) for _ in range(2))
        timing = bench.measure(str(self), {self.name: lambda i: b.copy_(a) if copies else a @ b})[self.name]
        rate = (2 * size * bench.dtype.itemsize if copies else 2 * size**3) / (timing.median / 1e3)
        row = bench.row(self.name, Shape(1, size, 1, 1 if copies else size), "torch", FORWARD, timing)
        bench.add(row, *(("bandwidth", rate / 1e12, "TB/s") if copies else ("rate", rate / 1e12, "TFLOP/s")))
        bench.ceilings[self.name] = max(rate, bench.ceilings.get(self.name, 0.0))


def ceiling(bench: Bench, name: str) -> float:
    """Bytes per second, read and written, of a large "copy", or FLOPs per second of a large "product".

    Measured once per piece, when it is first asked for.
    """
    if name not in bench.ceilings:
        Ceiling(name, bench.pick(10**9, 10**6) if name == "copy" else bench.pick(8192, 64)).run(bench)
    return bench.ceilings[name]


@piece("cuda", "ceilings")
def ceilings(bench: Bench) -> Iterator[Ceiling]:
    """The copy, and the product of two large bf16 matrices."""
    yield Ceiling("copy", bench.pick(10**9, 10**6))
    yield from (Ceiling("product", size) for size in bench.pick((4096, 8192, 16384), (64,)))


class Metric(NamedTuple):
    """A number computed from the direction and the seconds of a call.

    ``goals`` are what ours should reach, by direction; ``whose`` is how the names of the implementations begin that it
    is told of.
    """

    name: str
    unit: str
    of: Callable[[str, float], float]
    goals: Goals = NO_GOALS
    whose: tuple[str, ...] = ("",)


class Ratio(NamedTuple):
    """How the time of one implementation compares with another's.

    Attributes:
        name: of the number.
        peer: how the names of those begin that are compared with; the fastest other one counts.
        goals: by direction.
        of: whom it is told of.
        row: name and shape of the row that the peer was timed in; None for the same.
        share: None for the peer's time over ours; else ours over ``share`` times the peer's.
    """

    name: str
    peer: str
    goals: Goals = NO_GOALS
    of: str = "ours"
    row: tuple[str, Shape] | None = None
    share: float | None = None


MILLISECONDS = Metric("time", "ms", lambda direction, seconds: 1e3 * seconds)


def microseconds(name: str, calls: int = 1, goals: Goals = NO_GOALS) -> Metric:
    """Time in microseconds, of one of ``calls`` things that a call does."""
    return Metric(name, "us", lambda direction, seconds: 1e6 * seconds / calls, goals)


def constant(name: str, value: float, unit: str, whose: str = "ours") -> Metric:
    """A number that is no matter of time."""
    return Metric(name, unit, lambda direction, seconds: value, whose=(whose,))


def of_memory(bench: Bench, nbytes: Mapping[str, float], goals: Goals = NO_GOALS) -> Metric:
    """Share of the measured bandwidth, of calls that move so many bytes by direction."""
    return Metric("of HBM", "%", lambda way, seconds: 100 * nbytes[way] / ceiling(bench, "copy") / seconds, goals)


def rates(
    bench: Bench, shape: Shape, goals: Goals = NO_GOALS, density: float = 1.0, whose: tuple[str, ...] = ("",)
) -> tuple[Metric, Metric]:
    """TFLOP/s of exact attention over ``density`` of the causal pairs, and over the measured rate of a product."""

    def rate(direction: str, seconds: float) -> float:
        return density * flops(shape, direction) / seconds

    return (
        Metric("rate", "TFLOP/s", lambda *call: rate(*call) / 1e12, goals, whose),
        Metric("of matrix rate", "%", lambda *call: 100 * rate(*call) / ceiling(bench, "product"), whose=whose),
    )


@dataclass(frozen=True)
class Timed:
    """A case that is timed beside what it is compared with.

    Attributes:
        case: what is called; with its shape, its name is what ``only=`` looks at.
        peers: makes other implementations of it, which take its arrays by name.
        directions: directions that are timed, one after the other.
        metrics: numbers computed from the times.
        ratios: ratios computed from the times.
        ours: name of the case's own implementation.
        clock: another clock than the piece's; peak memory is then not asked for.
        same: an implementation whose first head's output is compared with ours, which shows that both compute the same.
        always: it is measured whatever ``only=`` says, since others are compared with it.
    """

    case: Case
    peers: Callable[[], Forms] = dict
    directions: tuple[str, ...] = (FORWARD, BACKWARD)
    metrics: tuple[Metric, ...] = ()
    ratios: tuple[Ratio, ...] = ()
    ours: str = "ours"
    clock: Clock | None = None
    same: str = ""
    always: bool = False

    def __str__(self) -> str:
        return f"{self.case.name} {self.case.shape}"

    def run(self, bench: Bench) -> None:
        """Time all implementations side by side and record what follows."""
        forms = {self.ours: bench.ours(self.case.function)} | self.peers()
        sets = self.case.draw(bench.device, bench.dtype)
        for direction in self.directions:
            if bench.device.type == "cpu" and direction != FORWARD and "flex" in forms:
                del forms["flex"]
                bench.note("FlexAttention has a forward pass only on a CPU")
            runs = {who: self.case.passes(form, sets, direction) for who, form in forms.items()}
            found = bench.measure(f"{self} {direction}", runs, self.clock)
            row = bench.row(self.case.name, self.case.shape, "", direction)
            self.tell(bench, row, found)
            if self.clock is None and bench.options.suite == "cuda":
                self.add_peaks(bench, row, {who: forms[who] for who in found}, sets)
            if self.same in found and direction == FORWARD:
                with torch.no_grad():
                    ours, theirs = (forms[who](**given(sets[0]))[:, :, 0].float() for who in (self.ours, self.same))
                difference = float((ours - theirs).norm() / ours.norm())
                bench.add(row._replace(implementation=self.same), "rms of the difference", difference)

    def tell(self, bench: Bench, row: Record, found: Mapping[str, Timing]) -> None:
        """Record the metrics of what was timed, and the ratios."""
        direction = row.direction
        bench.times[row.name, row.shape, direction] = dict(found)
        for who, timing in found.items():
            for metric in (m for m in self.metrics if who.startswith(m.whose)):
                goal = metric.goals.get(direction) if who == self.ours else None
                value = metric.of(direction, timing.median / 1e3)
                bench.add(row._replace(implementation=who, timing=timing), metric.name, value, metric.unit, goal)
        for ratio in self.ratios:
            there = found if ratio.row is None else bench.times.get((*ratio.row, direction), {})
            rivals = {who: timing.median for who, timing in there.items() if who.startswith(ratio.peer)}
            if ratio.row is None:
                rivals.pop(ratio.of, None)
            if rivals and ratio.of in found:
                ours, peer = found[ratio.of], min(rivals.values())
                value = peer / ours.median if ratio.share is None else ours.median / (ratio.share * peer)
                told = row._replace(implementation=ratio.of, timing=ours)
                bench.add(told, ratio.name, value, "x", ratio.goals.get(direction))

    def add_peaks(self, bench: Bench, row: Record, forms: Forms, sets: list[dict[str, Any]]) -> None:
        """Record the memory in GB that a forward pass, or both, hold at their peak beside what was there before.

        On a CPU nothing is called, and 0 is recorded.
        """
        row = row._replace(direction=FORWARD if row.direction == FORWARD else BOTH)
        for who, form in forms.items():
            with bench.guard(f"memory of {self}, {who}", who):
                peak = 0
                if bench.device.type == "cuda":
                    run = self.case.passes(form, sets[:1], row.direction)
                    bench.wait()
                    torch.cuda.reset_peak_memory_stats()
                    before = torch.cuda.memory_allocated()
                    run(0)
                    bench.wait()
                    peak = torch.cuda.max_memory_allocated() - before
                bench.add(row._replace(implementation=who), "peak", peak / 1e9, "GB")


class Flat(NamedTuple):
    """How the time per token depends on the context: the slowest over the fastest of those rows that were timed.

    Attributes:
        name: of the rows.
        shapes: of the rows; the last one is that of the record.
        goals: by direction, which tell what is looked at.
        whose: implementation.
    """

    name: str
    shapes: Sequence[Shape]
    goals: Goals
    whose: str = "ours"

    def __str__(self) -> str:
        return f"{self.name} of {self.whose} over contexts"

    def run(self, bench: Bench) -> None:
        """Record it of every direction, if two rows were timed."""
        for direction, goal in self.goals.items():
            known = {s: bench.times.get((self.name, s, direction), {}).get(self.whose) for s in self.shapes}
            found = [timing.median / (shape.batch * shape.length) for shape, timing in known.items() if timing]
            if len(found) > 1:
                row = bench.row(self.name, self.shapes[-1], self.whose, direction)
                bench.add(row, "slowest over fastest time per token", max(found) / min(found), "x", goal)
