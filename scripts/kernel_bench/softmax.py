"""Exact attention on a GPU: TFLOP/s beside PyTorch's kernels and FlexAttention, grouped heads, windows."""

from __future__ import annotations

from torch import Tensor

import zoo_kernels
from kernel_bench.bench import Bench, Row, Shape
from kernel_bench.ceilings import matrix_rate
from kernel_bench.forms import DIRECTIONS, Timings, add_rates, against, flops, time_forms
from kernel_bench.inputs import BACKWARD, FORWARD, Attention, low_precision
from kernel_bench.patterns import window_pairs
from kernel_bench.peers import add_flex, causal_mask, sdpa_peers

GOALS = {FORWARD: ">= 480", BACKWARD: ">= 350"}  # TFLOP/s
AIM = 8192  # tokens from which they hold, at a width of 128


def ours(bench: Bench, window: int | None = None, sink_tokens: int = 0) -> Attention:
    """This project's kernel."""
    attention = bench.ours(zoo_kernels.softmax_attention)

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(q, k, v, window=window, sink_tokens=sink_tokens)

    return run


def causal(
    bench: Bench, name: str, shape: Shape, goals: bool, peers: tuple[str, ...] = ("sdpa", "flex")
) -> dict[str, Timings]:
    """Exact attention in all implementations: time, memory, rates, the lead over PyTorch's flash kernel."""
    forms = {"ours": ours(bench), **sdpa_peers(bench)}
    if "flex" in peers:
        add_flex(bench, f"{name} {shape}", forms, lambda: causal_mask(shape.length, bench.device))
    timings = time_forms(bench, name, shape, forms)
    for direction, found in timings.items():
        row = Row(name, shape, low_precision(bench), "", direction)
        add_rates(bench, row, found, flops(shape, direction), GOALS[direction] if goals else None)
        against(bench, row, found, "sdpa flash", ">= 1")
    return timings


def softmax(bench: Bench) -> None:
    """Forward and backward apart: long rows at a width of 128, then heads 64 and 256 wide."""
    shapes = [Shape(max(1, 16384 // t), t, 16, 128) for t in (AIM, 2 * AIM, 4 * AIM)]
    shapes += [Shape(2, AIM, 32, 64), Shape(2, AIM, 8, 256)]
    if bench.dry:
        shapes = [Shape(1, 33, 2, 16)]
    matrix_rate(bench)
    bench.each(shapes, lambda s: causal(bench, "causal", s, s.width == 128), lambda s: f"causal {s}")


def few_heads_exact(bench: Bench) -> None:
    """One row of few heads over a long context."""
    length, width, heads = (33, 16, (1,)) if bench.dry else (64 * 1024, 128, (8, 1, 4, 16))
    matrix_rate(bench)
    shapes = [Shape(1, length, h, width) for h in heads]
    bench.each(shapes, lambda s: causal(bench, "few heads", s, False), lambda s: f"few heads {s}")


def gqa(bench: Bench) -> None:
    """Query heads that share key heads: the time against as many key heads as query heads."""
    length, heads, width = (20, 2, 16) if bench.dry else (8192, 32, 128)
    full: dict[str, float] = {}

    def run(groups: int) -> None:
        shape = Shape(1 if bench.dry else 2, length, heads, width, groups)
        for direction, found in causal(bench, "gqa", shape, False).items():
            if "ours" not in found:
                continue
            if groups == heads:
                full[direction] = found["ours"].median
            elif direction in full:
                row = Row("gqa", shape, low_precision(bench), "ours", direction, found["ours"])
                bench.add(row, "time over MHA", found["ours"].median / full[direction], "x", "<= 1.1")

    matrix_rate(bench)
    bench.each((2, 1) if bench.dry else (32, 8, 4, 1), run, lambda groups: f"gqa {groups}")


def dense(bench: Bench, shape: Shape) -> dict[str, Timings]:
    """What rows with fewer pairs are compared with: ours and PyTorch's kernels over all pairs."""
    timings = time_forms(bench, "dense", shape, {"ours": ours(bench), **sdpa_peers(bench)})
    for direction, found in timings.items():
        add_rates(bench, Row("dense", shape, low_precision(bench), "", direction), found, flops(shape, direction))
    return timings


WINDOWS = ((1024, 0), (4096, 0), (256, 0), (1024, 4), (128, 0), (16384, 0))  # tokens, and first tokens kept visible


def windows(bench: Bench, sizes: tuple[tuple[int, int], ...] | None = None) -> None:
    """Windows over a long context, against the share of the pairs that they hold, and FlexAttention."""
    shape = Shape(1, 20, 2, 16) if bench.dry else Shape(1, 32768, 16, 128)
    whole: dict[str, Timings] = {direction: {} for direction in DIRECTIONS}
    matrix_rate(bench)
    with bench.guard("dense"):
        whole |= dense(bench, shape)

    def run(item: tuple[int, int]) -> None:
        window, sink_tokens = item
        name = f"window {window}" + (f", {sink_tokens} sinks" if sink_tokens else "")
        forms = {"ours": ours(bench, window, sink_tokens)}
        if not sink_tokens:
            add_flex(bench, name, forms, lambda: causal_mask(shape.length, bench.device, window))
        share = window_pairs(shape.length, window)
        for direction, found in time_forms(bench, name, shape, forms).items():
            row = Row(name, shape, low_precision(bench), "", direction)
            compare_to_dense(bench, row, found, whole[direction], share, None)

    sizes = sizes or (((8, 0), (8, 2)) if bench.dry else WINDOWS)
    bench.each(sizes, run, lambda item: f"window {item[0]}, {item[1]} sinks")


def compare_to_dense(bench: Bench, row: Row, found: Timings, whole: Timings, density: float, goal: str | None) -> None:
    """Record rates, the time over density x dense time, and the lead over FlexAttention and over dense SDPA."""
    add_rates(bench, row, found, density * flops(row.shape, row.direction))
    for who, timing in found.items():
        told = row._replace(implementation=who, timing=timing)
        if "ours" in whole:
            ratio = timing.median / (density * whole["ours"].median)
            bench.add(told, "over density x dense", ratio, "x", goal if who == "ours" else None)
        if who == "ours":
            bench.add(told, "density", 100 * density, "%")
    against(bench, row, found, "flex", ">= 1.2")
    peers = [timing for who, timing in whole.items() if who.startswith("sdpa")]
    if peers and "ours" in found:
        fastest = min(timing.median for timing in peers)
        told = row._replace(implementation="ours", timing=found["ours"])
        bench.add(told, "over dense sdpa", fastest / found["ours"].median, "x")
