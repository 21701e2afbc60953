"""What is timed of linear attention, for zoo_kernels.bench: against the bandwidth of memory, and beside its peers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from zoo_kernels.bench.bench import FLA, Bench
from zoo_kernels.bench.case import Case, Forms, Goals, Metric, Ratio, Together, flatness, flops, microseconds, of_memory
from zoo_kernels.bench.clock import GraphClock, HostClock
from zoo_kernels.bench.inputs import slopes
from zoo_kernels.bench.peers import fla_peer, sdpa
from zoo_kernels.bench.record import BOTH, FORWARD, Row, Shape
from zoo_kernels.bench.registry import piece
from zoo_kernels.linear.api import linear_attention, linear_attention_step

ARRAYS = {FORWARD: 4, BOTH: 11}  # q k v o; and once more q k v with do dq dk dv: the fewest rows moved per token
ROOFLINE = {FORWARD: ">= 50", BOTH: ">= 35"}  # per cent
FLAT = 128 * 1024  # tokens up to which the speed must not depend on the context
CPU_LENGTHS = {"full": [512 << i for i in range(8)], "quick": [512, 1024, 2048, 4096]}
CPU_RATIOS = {512: ">= 2", 8192: ">= 16"}
PATIENCE = 150.0  # seconds that one call of exact attention may take on a CPU


def lightning_forms(bench: Bench, shape: Shape, name: str = "ours") -> Forms:
    """Lightning attention and its peer."""
    decay, linear = slopes(shape.heads, bench.device), bench.ours(linear_attention)
    return {name: lambda q, k, v: linear(q, k, v, decay)[0]} | fla_peer(bench, decay)


def _lightning(bench: Bench, name: str, shape: Shape, goals: Goals, *ratios: Ratio) -> Case:
    numbers = shape.batch * shape.length * shape.heads * shape.width
    moved = of_memory(lambda direction: ARRAYS[direction] * numbers * bench.dtype.itemsize, goals)
    over = Ratio(f"over {FLA}", FLA, dict.fromkeys(ARRAYS, ">= 1.3"))
    return Case(name, shape, lightning_forms, (BOTH, FORWARD), (moved,), (over, *ratios), same=FLA)


@piece("cuda", "linear")
def linear(bench: Bench) -> Iterator[Case]:
    """All contexts with the same number of tokens: share of the bandwidth, memory, flatness. Exact ones: contexts."""
    tokens, heads, width = bench.pick((512 * 1024, 16, 128), (32, 2, 16))
    lengths = bench.pick([1024 << i for i in range(10)], [16, 32])
    shapes = [Shape(tokens // length, length, heads, width) for length in lengths]
    yield from (_lightning(bench, "lightning", shape, ROOFLINE) for shape in shapes)
    for direction in ARRAYS:
        ratio = flatness(bench, "lightning", [shape for shape in shapes if shape.length <= FLAT], direction)
        if ratio:
            row = Row("all contexts up to 128k", Shape(1, tokens, heads, width), bench.dtype, "ours", direction)
            bench.add(row, "slowest over fastest tokens/s", 1 / ratio, "", ">= 0.95")


@piece("first", "lightning-8k", length=8192)
@piece("first", "lightning-64k", length=65_536)
def headline(bench: Bench, length: int) -> Iterator[Case]:
    """One context."""
    tokens, context, heads, width = bench.pick((256 * 1024, length, 16, 128), (32, 16, 2, 16))
    yield _lightning(bench, "lightning", Shape(tokens // context, context, heads, width), ROOFLINE)


@piece("cuda", "few_heads")
def few_heads(bench: Bench) -> Iterator[Case]:
    """One row of few heads over a long context, per byte, against a batch that fills the GPU."""
    many, counts = bench.pick((Shape(4, 64 * 1024, 32, 128), (8, 1, 4, 16)), (Shape(2, 32, 2, 16), (1,)))
    yield replace(_lightning(bench, "saturated", many, ROOFLINE), always=True)
    for heads in counts:
        goals = dict.fromkeys(ARRAYS, "<= 1.5") if heads == 8 else {}
        share = heads / (many.batch * many.heads)
        ratio = Ratio("time per byte over saturated", "ours", goals, row=("saturated", many), share=share)
        yield _lightning(bench, "few heads", Shape(1, many.length, heads, many.width), {}, ratio)


@piece("cuda", "widths")
def widths(bench: Bench) -> Iterator[Case]:
    """Heads 64, 128 and 256 wide, with the same number of bytes."""
    batch, length, numbers, sizes = bench.pick((4, 8192, 64 * 128, (64, 128, 256)), (1, 16, 64, (16, 32)))
    before, last = (Shape(batch, length, numbers // width, width) for width in sizes[-2:])
    for width in sizes:
        shape = Shape(batch, length, numbers // width, width)
        goals = dict.fromkeys(ARRAYS, "<= 2.5")
        wider = [Ratio("time per byte over half as wide", "ours", goals, row=("widths", before), share=1.0)]
        yield _lightning(bench, "widths", shape, ROOFLINE if width == 128 else {}, *(wider if shape == last else []))


def _step_forms(bench: Bench, shape: Shape) -> Forms:
    decay, step = slopes(shape.heads, bench.device), bench.ours(linear_attention_step)
    state = torch.zeros(shape.batch, shape.heads, shape.width, shape.width, device=bench.device)
    peers = fla_peer(bench, decay, state)
    return {"ours": lambda q, k, v: step(q[:, 0], k[:, 0], v[:, 0], decay, state)[:, None]} | peers


def _our_step(bench: Bench, shape: Shape) -> Forms:
    return {"ours": _step_forms(bench, shape)["ours"]}


def _steps(shape: Shape) -> Iterator[Case]:
    """A step by the GPU's time, by the host's, and inside a CUDA graph."""
    goals = {FORWARD: "<= 15"} if shape.batch <= 4 else {}
    on_gpu = microseconds("GPU time", goals=goals)
    moved = of_memory(lambda direction: 8.0 * shape.batch * shape.heads * shape.width**2)
    ways: tuple[tuple[str, GraphClock | HostClock | None, tuple[Metric, ...]], ...] = (
        ("", None, (on_gpu, moved)),
        (", eager", HostClock(), (microseconds("host time"),)),
        (", in a CUDA graph", GraphClock(), (on_gpu,)),
    )
    for how, clock, metrics in ways:
        forms = _our_step if clock else _step_forms
        yield Case(f"linear step{how}", shape, forms, (FORWARD,), metrics, queries=1, clock=clock)


@piece("cuda", "decode", batches=(1, 4, 32, 256))
@piece("first", "decode", batches=(1,))
def steps(bench: Bench, batches: tuple[int, ...]) -> Iterator[Case]:
    """Steps over batch sizes."""
    heads, width = bench.pick((64, 128), (2, 16))
    for batch in bench.pick(batches, (1,)):
        yield from _steps(Shape(batch, 1, heads, width))


@piece("cuda", "overhead")
def overhead(bench: Bench) -> Iterator[Case]:
    """Host time of eager calls on arrays so small that the GPU does not matter."""
    shape, told = (
        bench.pick(Shape(1, 64, 1, 64), Shape(1, 16, 2, 16)),
        microseconds("per call", goals={FORWARD: "<= 60"}),
    )
    yield Case("linear", shape, lightning_forms, (FORWARD, BOTH), (told,), clock=HostClock())
    yield Case("linear step", shape, _our_step, (FORWARD,), (microseconds("per call"),), queries=1, clock=HostClock())


@piece("cpu", "linear")
def on_a_cpu(bench: Bench) -> Iterator[Case | Together]:
    """Lightning against exact attention over contexts, forward and backward, and its time per token."""
    shapes = [Shape(1, length, 8, 64) for length in CPU_LENGTHS[bench.options.scale]]
    bench.pace.learn("sdpa", flops(Shape(1, 8192, 8, 64), BOTH), 0.0, 5.0)  # until it has been measured

    def both(bench: Bench, shape: Shape) -> Forms:
        return lightning_forms(bench, shape) | {"sdpa": sdpa()}

    for shape in shapes:
        goal = CPU_RATIOS.get(shape.length)
        ratio, time = Ratio("over sdpa", "sdpa", {BOTH: goal} if goal else {}), microseconds("per token", shape.length)
        yield Case("lightning", shape, both, (BOTH,), (time,), (ratio,), patience=PATIENCE)
    name, long = "lightning, 2k and more side by side", [shape for shape in shapes if shape.length >= 2048]
    yield Together("flatness", tuple(Case(name, shape, lightning_forms, (BOTH,)) for shape in long))
    ratio_of_times = flatness(bench, name, long, BOTH)
    if ratio_of_times:
        row = Row(name, long[-1], bench.dtype, "ours", BOTH)
        bench.add(row, "slowest over fastest time per token", ratio_of_times, "x", "<= 1.3")
