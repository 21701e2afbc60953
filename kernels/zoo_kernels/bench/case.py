"""A case: implementations that are timed side by side on the same inputs, and what is computed from their times."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch

from zoo_kernels.bench.bench import Bench
from zoo_kernels.bench.ceilings import bandwidth, matrix_rate
from zoo_kernels.bench.clock import Clock, Run, Timing
from zoo_kernels.bench.inputs import Attention, Inputs, draw_inputs, timed
from zoo_kernels.bench.record import BACKWARD, BOTH, FORWARD, Row, Shape

Goals = Mapping[str, str]  # a target by direction
NO_GOALS: Goals = {}
Forms = dict[str, Attention]  # by implementation

UNITS = {FORWARD: 2.0, BACKWARD: 5.0, BOTH: 7.0}  # FLOPs per causal pair of a head, in units of twice the head width


def flops(shape: Shape, direction: str, queries: int = 0) -> float:
    """Of exact causal attention: ``4 B H T^2 D / 2`` forward, 2.5 times as many backward."""
    return UNITS[direction] * shape.batch * shape.heads * float(shape.length) * (queries or shape.length) * shape.width


class Metric(NamedTuple):
    """A number computed from the seconds of a call.

    Attributes:
        name, unit: of the number.
        of: computes it from the piece, the direction and the seconds.
        goals: what ours should reach, by direction.
        whose: how the names of the implementations begin that it is told of.
    """

    name: str
    unit: str
    of: Callable[[Bench, str, float], float]
    goals: Goals = NO_GOALS
    whose: tuple[str, ...] = ("",)


class Ratio(NamedTuple):
    """How the time of one implementation compares with another's.

    Attributes:
        name: of the number.
        peer: how the names of those begin that are compared with; the fastest counts.
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


MILLISECONDS = Metric("time", "ms", lambda bench, direction, seconds: 1e3 * seconds)


def microseconds(name: str, calls: int = 1, goals: Goals = NO_GOALS, whose: str = "") -> Metric:
    """Time in microseconds, of one of ``calls`` things that a call does."""
    return Metric(name, "us", lambda bench, direction, seconds: 1e6 * seconds / calls, goals, (whose,))


def constant(name: str, value: float, unit: str, whose: str = "ours") -> Metric:
    """A number that is no matter of time."""
    return Metric(name, unit, lambda bench, direction, seconds: value, {}, (whose,))


def of_memory(nbytes: Callable[[str], float], goals: Goals = NO_GOALS) -> Metric:
    """Share of the measured bandwidth, if a call in a direction moves so many bytes."""

    def share(bench: Bench, direction: str, seconds: float) -> float:
        return 100 * nbytes(direction) / bandwidth(bench) / seconds

    return Metric("of HBM", "%", share, goals)


def rates(
    shape: Shape, goals: Goals = NO_GOALS, density: float = 1.0, whose: tuple[str, ...] = ("",)
) -> tuple[Metric, Metric]:
    """TFLOP/s of exact attention over ``density`` of the causal pairs, and over the measured rate of a product."""

    def rate(bench: Bench, direction: str, seconds: float) -> float:
        return density * flops(shape, direction) / seconds

    return (
        Metric("rate", "TFLOP/s", lambda *given: rate(*given) / 1e12, goals, whose),
        Metric("of matrix rate", "%", lambda bench, *given: 100 * rate(bench, *given) / matrix_rate(bench), {}, whose),
    )


@dataclass(frozen=True)
class Case:
    """Implementations on inputs of one shape.

    Attributes:
        name: of the row; with the shape it is what ``only=`` looks at.
        shape: of the inputs.
        forms: makes the implementations, ours under a name that begins with "ours".
        directions: that are timed one after the other.
        metrics, ratios: computed from the times.
        queries: fewer than keys, as in decoding; 0 for as many.
        clock: another one than the piece's; peak memory is then not asked for.
        patience: seconds of a call from which it is left out.
        always: it is measured whatever ``only=`` says, since others are compared with it.
        same: an implementation whose first head's output is compared with ours, which shows that both compute the same.
    """

    name: str
    shape: Shape
    forms: Callable[[Bench, Shape], Forms]
    directions: tuple[str, ...] = (FORWARD, BACKWARD)
    metrics: tuple[Metric, ...] = ()
    ratios: tuple[Ratio, ...] = ()
    queries: int = 0
    clock: Clock | None = None
    patience: float = math.inf
    same: str = ""
    always: bool = False

    def __str__(self) -> str:
        return f"{self.name} {self.shape}"

    def run(self, bench: Bench) -> None:
        """Time all implementations side by side and record what follows."""
        Together(str(self), (self,)).run(bench)

    def tell(self, bench: Bench, direction: str, found: Mapping[str, Timing]) -> None:
        """Record the metrics of what was timed, and the ratios that one of them is part of."""
        row = Row(self.name, self.shape, bench.dtype, "", direction)
        known = bench.times.setdefault((self.name, self.shape, direction), {})
        known |= found
        for who, timing in found.items():
            for metric in self.metrics:
                if who.startswith(metric.whose):
                    goal = metric.goals.get(direction) if who.startswith("ours") else None
                    value = metric.of(bench, direction, timing.median / 1e3)
                    bench.add(row._replace(implementation=who, timing=timing), metric.name, value, metric.unit, goal)
        for ratio in self.ratios:
            there = known if ratio.row is None else bench.times.get((*ratio.row, direction), {})
            peers = [timing.median for who, timing in there.items() if who.startswith(ratio.peer)]
            if peers and ratio.of in known:
                ours, peer = known[ratio.of], min(peers)
                value = peer / ours.median if ratio.share is None else ours.median / (ratio.share * peer)
                told = row._replace(implementation=ratio.of, timing=ours)
                bench.add(told, ratio.name, value, "x", ratio.goals.get(direction))


def flatness(bench: Bench, name: str, shapes: Iterable[Shape], direction: str) -> float | None:
    """Slowest over fastest time per token of ours, of those rows that were timed; None of none."""
    known = {shape: bench.times.get((name, shape, direction), {}).get("ours") for shape in shapes}
    found = [timing.median / (shape.batch * shape.length) for shape, timing in known.items() if timing]
    return max(found) / min(found) if found else None


@dataclass(frozen=True)
class Together:
    """Cases whose implementations are all timed side by side, so that what else the machine does meets them alike."""

    name: str
    cases: tuple[Case, ...]

    def __str__(self) -> str:
        return self.name

    def run(self, bench: Bench) -> None:
        """Time and record."""
        made = []
        for case in self.cases:
            sets = draw_inputs(bench.device, case.shape, bench.dtype, case.queries)
            made.append((case, case.forms(bench, case.shape), sets))
        for direction in self.cases[0].directions:
            runs: dict[str, Run] = {}
            work, owners = {}, {}
            for case, forms, sets in made:
                for who, form in forms.items():
                    if who == "flex" and bench.device.type == "cpu" and direction != FORWARD:
                        bench.note("FlexAttention has a forward pass only on a CPU")
                        continue
                    label = who if len(made) == 1 else f"{who}, {case.shape}"
                    runs[label], owners[label] = timed(form, sets, direction), (case, who)
                    if case.clock is None:
                        # in FLOPs of exact attention for all: others' time grows with less, and never with more
                        work[label] = flops(case.shape, direction, case.queries)
            first = self.cases[0]
            found = bench.measure(f"{self.name} {direction}", runs, work, first.clock, first.patience)
            for case, forms, sets in made:
                mine = {who: found[label] for label, (owner, who) in owners.items() if owner is case and label in found}
                case.tell(bench, direction, mine)
                if case.clock is None and bench.bounded:
                    _peaks(bench, case, {who: forms[who] for who in mine}, sets, direction)
                if case.same in mine and direction == FORWARD:
                    _same(bench, case, forms, sets[0])


def _peaks(bench: Bench, case: Case, forms: Forms, sets: list[Inputs], direction: str) -> None:
    """Record the memory that a forward pass, or both, hold at their peak beside what was there before."""
    passes = FORWARD if direction == FORWARD else BOTH
    row = Row(case.name, case.shape, bench.dtype, "", passes)
    add_peaks(bench, row, {who: timed(form, sets[:1], passes) for who, form in forms.items()})


def add_peaks(bench: Bench, row: Row, runs: Mapping[str, Run]) -> None:
    """Record the peak memory of one call of each, in GB."""
    for who, run in runs.items():
        with bench.guard(f"memory of {row.name} {row.shape}, {who}", who):
            if bench.left() > 0:
                bench.add(row._replace(implementation=who), "peak", _peak(bench.device, run) / 1e9, "GB")


def _peak(device: torch.device, run: Run) -> int:
    """Bytes; 0 on a CPU, where nothing is called."""
    if device.type != "cuda":
        return 0
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run(0)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _same(bench: Bench, case: Case, forms: Forms, inputs: Inputs) -> None:
    with torch.no_grad():
        ours, theirs = (forms[who](*inputs[:3])[:, :, 0].float() for who in ("ours", case.same))
    row = Row(case.name, case.shape, bench.dtype, case.same, FORWARD)
    bench.add(row, "rms of the difference", float((ours - theirs).norm() / ours.norm()))
