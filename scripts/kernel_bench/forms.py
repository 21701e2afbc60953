"""A row of implementations on the same inputs: time, peak memory, FLOPs and their share of the matrix rate."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from kernel_bench.bench import Bench, Row, Shape
from kernel_bench.ceilings import matrix_rate
from kernel_bench.inputs import BACKWARD, BOTH, FORWARD, Attention, draw_inputs, low_precision, timed
from kernel_bench.timing import Run, Timing

UNITS = {FORWARD: 2.0, BACKWARD: 5.0, BOTH: 7.0}  # FLOPs per causal pair of a head, in units of twice the head width
DIRECTIONS = (FORWARD, BACKWARD)

Timings = dict[str, Timing]  # by implementation


def flops(shape: Shape, direction: str) -> float:
    """Of exact causal attention: ``4 B H T^2 D / 2`` forward, 2.5 times as many backward."""
    return UNITS[direction] * shape.batch * shape.heads * float(shape.length) ** 2 * shape.width


def time_forms(
    bench: Bench, name: str, shape: Shape, forms: Mapping[str, Attention], directions: tuple[str, ...] = DIRECTIONS
) -> dict[str, Timings]:
    """Timings by direction and implementation; the peak memory of forward, or of both passes, is recorded here."""
    dtype = low_precision(bench)
    sets = draw_inputs(bench, shape, dtype)
    found = {}
    for direction in directions:
        able = forms
        if bench.device.type == "cpu" and direction != FORWARD and "flex" in forms:
            bench.note("FlexAttention has a forward pass only on a CPU")
            able = {who: form for who, form in forms.items() if who != "flex"}
        runs = {who: timed(form, sets, direction) for who, form in able.items()}
        # in FLOPs of exact attention for all: it is more than the time of others grows with, and never less
        found[direction] = bench.measure(f"{name} {shape} {direction}", runs, work=flops(shape, direction))
        passes = FORWARD if direction == FORWARD else BOTH
        whole = {who: timed(able[who], sets[:1], passes) for who in found[direction]}
        add_peaks(bench, Row(name, shape, dtype, "", passes), whole)
    return found


def add_peaks(bench: Bench, row: Row, runs: Mapping[str, Run]) -> None:
    """Record, for each, the memory that one call holds at its peak beside what was there before."""
    for who, run in runs.items():
        with bench.guard(f"memory of {row.name} {row.shape}, {who}", who):
            if not bench.bounded or bench.left() > 0:
                bench.add(row._replace(implementation=who), "peak", peak(bench.device, run) / 1e9, "GB")


def peak(device: torch.device, run: Run) -> int:
    """Bytes; 0 on a CPU, where nothing is called."""
    if device.type != "cuda":
        return 0
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run(0)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def add_rates(bench: Bench, row: Row, found: Timings, work: float, goal: str | None = None) -> None:
    """Record TFLOP/s of each implementation, and that rate over the measured one of a product of matrices."""
    for who, timing in found.items():
        rate = work / (timing.median / 1e3)
        told = row._replace(implementation=who, timing=timing)
        bench.add(told, "rate", rate / 1e12, "TFLOP/s", goal if who.startswith("ours") else None)
        bench.add(told, "of matrix rate", 100 * rate / matrix_rate(bench), "%")


def against(bench: Bench, row: Row, found: Timings, peer: str, goal: str | None) -> None:
    """Record how many times faster than a peer ours is, if both ran."""
    if peer in found and "ours" in found:
        told = row._replace(implementation="ours", timing=found["ours"])
        bench.add(told, f"over {peer}", found[peer].median / found["ours"].median, "x", goal)
