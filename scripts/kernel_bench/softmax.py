"""Exact attention on a GPU: TFLOP/s beside PyTorch's kernels and FlexAttention, grouped heads, windows."""

from __future__ import annotations

from torch import Tensor

import kernels
from kernel_bench.bench import Bench, Row, Shape
from kernel_bench.inputs import BACKWARD, FORWARD, Attention, draw_inputs, low_precision, timed
from kernel_bench.patterns import window_pairs
from kernel_bench.peers import add_flex, causal_mask, sdpa_peers
from kernel_bench.timing import Timing

WORK = {FORWARD: 2.0, BACKWARD: 5.0}  # FLOPs per causal pair of a head, in units of twice the head width
GOALS = {FORWARD: ">= 480", BACKWARD: ">= 350"}  # TFLOP/s
DIRECTIONS = (FORWARD, BACKWARD)


def flops(shape: Shape, direction: str) -> float:
    """``4 B H T^2 D / 2`` forward, 2.5 times as many backward."""
    return WORK[direction] * shape.batch * shape.heads * float(shape.length) ** 2 * shape.width


def ours(bench: Bench, window: int | None = None, sinks: int = 0) -> Attention:
    """This project's kernel."""
    attention = bench.ours(kernels.softmax_attention)

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(q, k, v, window=window, sinks=sinks)

    return run


def time_forms(
    bench: Bench, name: str, shape: Shape, forms: dict[str, Attention], directions: tuple[str, ...] = DIRECTIONS
) -> dict[str, dict[str, Timing]]:
    """Timings by direction and implementation on the same inputs."""
    sets = draw_inputs(bench, shape, low_precision(bench))
    found = {}
    for direction in directions:
        runs = {who: timed(form, sets, direction) for who, form in forms.items()}
        found[direction] = bench.measure(f"{name} {shape} {direction}", runs)
    return found


def _rates(bench: Bench, name: str, shape: Shape, timings: dict[str, dict[str, Timing]], aim: bool) -> None:
    dtype = low_precision(bench)
    for direction, found in timings.items():
        for who, timing in found.items():
            rate = flops(shape, direction) / timing.median / 1e9
            goal = GOALS[direction] if aim and who == "ours" else None
            bench.add(Row(name, shape, dtype, who, direction, timing), "rate", rate, "TFLOP/s", goal)
        against(bench, Row(name, shape, dtype, "ours", direction, found.get("ours")), found, "sdpa flash", ">= 1")


def against(bench: Bench, row: Row, found: dict[str, Timing], peer: str, goal: str) -> None:
    """Record how many times faster than a peer ours is, if both ran."""
    if peer in found and "ours" in found:
        bench.add(row, f"over {peer}", found[peer].median / found["ours"].median, "x", goal)


def softmax(bench: Bench) -> None:
    """Causal attention over contexts and widths, 16k tokens in a batch at least."""
    shapes = [Shape(max(1, 16384 // t), t, 16, 128) for t in (8192, 16384, 4096, 2048, 1024, 32768)]
    shapes += [Shape(2, 8192, 32, 64), Shape(2, 8192, 8, 256)]
    if bench.dry:
        shapes = [Shape(1, 33, 2, 16)]

    def run(shape: Shape) -> None:
        forms = {"ours": ours(bench), **sdpa_peers(bench)}
        add_flex(bench, f"causal {shape}", forms, lambda: causal_mask(shape.length, bench.device))
        aim = shape.width == 128 and shape.length >= 8192
        _rates(bench, "causal", shape, time_forms(bench, "causal", shape, forms), aim)

    bench.each(shapes, run, lambda shape: f"causal {shape}")


def gqa(bench: Bench) -> None:
    """Query heads that share key heads: the time against as many key heads as query heads."""
    length, heads, width = (20, 2, 16) if bench.dry else (8192, 32, 128)
    full: dict[str, float] = {}

    def run(groups: int) -> None:
        shape = Shape(1 if bench.dry else 2, length, heads, width, groups)
        timings = time_forms(bench, "gqa", shape, {"ours": ours(bench), **sdpa_peers(bench)})
        _rates(bench, "gqa", shape, timings, False)
        for direction, found in timings.items():
            if "ours" not in found:
                continue
            if groups == heads:
                full[direction] = found["ours"].median
            elif direction in full:
                row = Row("gqa", shape, low_precision(bench), "ours", direction, found["ours"])
                bench.add(row, "time over MHA", found["ours"].median / full[direction], "x", "<= 1.1")

    bench.each((2, 1) if bench.dry else (32, 8, 4, 1), run, lambda groups: f"gqa {groups}")


def windows(bench: Bench) -> None:
    """Windows over a long context, against the share of the pairs that they hold, and FlexAttention."""
    shape = Shape(1, 20, 2, 16) if bench.dry else Shape(1, 32768, 16, 128)
    dense = time_forms(bench, "dense", shape, {"ours": ours(bench)})
    _rates(bench, "dense", shape, dense, False)

    def run(item: tuple[int, int]) -> None:
        window, sinks = item
        name = f"window {window}" + (f", {sinks} sinks" if sinks else "")
        forms = {"ours": ours(bench, window, sinks)}
        if not sinks:
            add_flex(bench, name, forms, lambda: causal_mask(shape.length, bench.device, window))
        share = window_pairs(shape.length, window)
        for direction, found in time_forms(bench, name, shape, forms).items():
            compare_to_dense(bench, name, shape, direction, found, dense[direction], share, None)

    sizes = ((8, 0), (8, 2)) if bench.dry else ((1024, 0), (4096, 0), (256, 0), (1024, 4), (128, 0), (16384, 0))
    bench.each(sizes, run, lambda item: f"window {item[0]}, {item[1]} sinks")


def compare_to_dense(
    bench: Bench,
    name: str,
    shape: Shape,
    direction: str,
    found: dict[str, Timing],
    dense: dict[str, Timing],
    density: float,
    goal: str | None,
) -> None:
    """Record the time over density x dense time, and the lead over FlexAttention."""
    dtype = low_precision(bench)
    for who, timing in found.items():
        row = Row(name, shape, dtype, who, direction, timing)
        if "ours" in dense:
            ratio = timing.median / (density * dense["ours"].median)
            bench.add(row, "over density x dense", ratio, "x", goal if who == "ours" else None)
            if who == "ours":
                bench.add(row, "density", 100 * density, "%")
    against(bench, Row(name, shape, dtype, "ours", direction, found.get("ours")), found, "flex", ">= 1.2")
