"""Linear attention on a GPU: against the bandwidth of its memory, and beside flash-linear-attention."""

from __future__ import annotations

from collections.abc import Iterable

import torch

import zoo_kernels
from kernel_bench.bench import FLA, Bench, Row, Shape
from kernel_bench.ceilings import bandwidth
from kernel_bench.forms import time_forms
from kernel_bench.inputs import BOTH, FORWARD, Attention, draw_inputs, low_precision, slopes
from kernel_bench.peers import fla_linear

ARRAYS = {FORWARD: 4, BOTH: 11}  # q k v o; and once more q k v with do dq dk dv: the fewest rows moved per token
ROOFLINE = {FORWARD: ">= 50", BOTH: ">= 35"}  # per cent
FLAT = 128 * 1024  # tokens up to which the speed must not depend on the context
HEADS, WIDTH = 16, 128


def _forms(bench: Bench, heads: int) -> dict[str, Attention]:
    decay = slopes(heads, bench.device)
    ours = bench.ours(zoo_kernels.linear_attention)
    return {"ours": lambda q, k, v: ours(q, k, v, decay)[0], **fla_linear(bench, decay)}


def _least_seconds(bench: Bench, shape: Shape, dtype: torch.dtype, direction: str) -> float:
    numbers = shape.batch * shape.length * shape.heads * shape.width
    return ARRAYS[direction] * numbers * dtype.itemsize / bandwidth(bench)


def time_lightning(bench: Bench, name: str, shape: Shape, direction: str, goal: str | None) -> float | None:
    """Time all forms of one shape; milliseconds of ours."""
    dtype = low_precision(bench)
    forms = _forms(bench, shape.heads)
    timings = time_forms(bench, name, shape, forms, (direction,))[direction]
    least = _least_seconds(bench, shape, dtype, direction)
    for who, timing in timings.items():
        row = Row(name, shape, dtype, who, direction, timing)
        share = 100 * least / (timing.median / 1e3)
        bench.add(row, "of HBM", share, "%", goal if who == "ours" else None)
    if FLA in timings and "ours" in timings:
        if direction == FORWARD:
            _same(bench, Row(name, shape, dtype, FLA, direction), forms)
        row = Row(name, shape, dtype, "ours", direction, timings["ours"])
        bench.add(row, f"over {FLA}", timings[FLA].median / timings["ours"].median, "x", ">= 1.3")
    return timings["ours"].median if "ours" in timings else None


def _same(bench: Bench, row: Row, forms: dict[str, Attention]) -> None:
    """How far the peer's output is from ours, of the first head: that both compute the same."""
    inputs = draw_inputs(bench, row.shape, row.dtype)[0]
    with torch.no_grad():
        ours, theirs = (forms[who](*inputs[:3])[:, :, 0].float() for who in ("ours", row.implementation))
    bench.add(row, "rms of the difference", float((ours - theirs).norm() / ours.norm()))


def linear(bench: Bench) -> None:
    """All contexts with the same number of tokens: share of the bandwidth, memory, flatness. Exact ones: contexts."""
    tokens = 32 if bench.dry else 512 * 1024
    lengths: Iterable[int] = (16, 32) if bench.dry else [1024 << i for i in range(10)]
    heads, width = (2, 16) if bench.dry else (HEADS, WIDTH)
    bandwidth(bench)
    rates: dict[str, list[float]] = {FORWARD: [], BOTH: []}

    def run(item: tuple[str, int]) -> None:
        direction, length = item
        shape = Shape(tokens // length, length, heads, width)
        took = time_lightning(bench, "lightning", shape, direction, ROOFLINE[direction])
        if took and length <= FLAT:
            rates[direction].append(tokens / took * 1e3)

    items = [(direction, length) for length in lengths for direction in (BOTH, FORWARD)]
    bench.each(items, run, lambda item: f"lightning {item[0]} T{item[1]}")
    for direction, found in rates.items():
        if found:
            row = Row(
                "all contexts up to 128k", Shape(1, tokens, heads, width), low_precision(bench), "ours", direction
            )
            bench.add(row, "slowest over fastest tokens/s", min(found) / max(found), "", ">= 0.95")


def few_heads(bench: Bench) -> None:
    """One row of few heads over a long context, per byte, against a batch that fills the GPU."""
    length, width = (32, 16) if bench.dry else (64 * 1024, WIDTH)
    many = Shape(2, length, 2, width) if bench.dry else Shape(4, length, 32, width)
    bandwidth(bench)

    def run(direction: str) -> None:
        dense = time_lightning(bench, "saturated", many, direction, ROOFLINE[direction])
        for heads in (1,) if bench.dry else (8, 1, 4, 16):
            shape = Shape(1, length, heads, width)
            took = time_lightning(bench, "few heads", shape, direction, None)
            if took and dense:
                ratio = took / dense * (many.batch * many.heads) / heads
                row = Row("few heads", shape, low_precision(bench), "ours", direction)
                bench.add(row, "time per byte over saturated", ratio, "x", "<= 1.5" if heads == 8 else None)

    bench.each([FORWARD, BOTH], run)


def widths(bench: Bench) -> None:
    """Heads 64, 128 and 256 wide, with the same number of bytes."""
    sizes = (16, 32) if bench.dry else (64, 128, 256)
    length, numbers = (16, 1024) if bench.dry else (8192, 8192 * 64 * 128 * 4)
    times: dict[tuple[str, int], float] = {}
    bandwidth(bench)

    def run(item: tuple[str, int]) -> None:
        direction, width = item
        heads = max(1, numbers // (length * width) // (1 if bench.dry else 4))
        shape = Shape(1 if bench.dry else 4, length, heads, width)
        goal = ROOFLINE[direction] if width == WIDTH else None
        took = time_lightning(bench, "widths", shape, direction, goal)
        if took:
            times[item] = took

    items = [(direction, width) for direction in (FORWARD, BOTH) for width in sizes]
    bench.each(items, run, lambda item: f"widths {item[0]} D{item[1]}")
    for direction in (FORWARD, BOTH):
        middle, widest = times.get((direction, sizes[-2])), times.get((direction, sizes[-1]))
        if middle and widest:
            row = Row(
                "widest over the one before", Shape(1, length, 1, sizes[-1]), low_precision(bench), "ours", direction
            )
            bench.add(row, "time per byte", widest / middle, "x", "<= 2.5")
