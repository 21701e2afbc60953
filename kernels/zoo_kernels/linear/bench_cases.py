"""What zoo_kernels.bench times of linear attention: whole sequences, and steps of decoding."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from zoo_kernels.bench import timed
from zoo_kernels.bench.bench import FLA, Bench
from zoo_kernels.bench.case import Arrays, Case
from zoo_kernels.bench.check import KEEP, Checked, large
from zoo_kernels.bench.clock import GRAPH, HOST
from zoo_kernels.bench.peers import fla_peer, sdpa
from zoo_kernels.bench.record import BOTH, FORWARD, Row, Shape
from zoo_kernels.bench.registry import piece
from zoo_kernels.bench.timed import NO_GOALS, Goals, Ratio, Timed, each_way, microseconds
from zoo_kernels.linear.api import linear_attention, linear_attention_step

ARRAYS = {FORWARD: 4, BOTH: 11}  # q k v o; and once more q k v with do dq dk dv: the fewest rows moved per token
ROOFLINE = {FORWARD: ">= 50", BOTH: ">= 35"}  # per cent
FLAT = 128 * 1024  # tokens up to which the speed must not depend on the context
CPU_LENGTHS = {"full": [512 << i for i in range(8)], "quick": [512, 1024, 2048, 4096]}
CPU_RATIOS = {512: ">= 2", 8192: ">= 16"}


def slopes(heads: int, device: torch.device) -> Tensor:
    """Log decays ``(H,)`` of lightning attention's first layer, ``-2^(-8 (h + 1) / H)``, fp32."""
    return -torch.exp2(-8 * torch.arange(1, heads + 1, device=device) / heads)


def attention(name: str, shape: Shape) -> Case:
    """A call over whole sequences, which gives the output alone."""

    def call(**x: Any) -> Tensor:
        return linear_attention(**x)[0]

    return Case.whole(name, shape, call, lambda device: {"log_decay": slopes(shape.heads, device)})


@piece("cuda", "correctness_large")
def many_numbers(bench: Bench) -> Iterator[Checked]:
    """More than 2^31; the decay is so strong that what lies further back than the span has no weight."""

    def call(q: Tensor, k: Tensor, v: Tensor, backend: str) -> Tensor:
        return linear_attention(q, k, v, -torch.ones(q.shape[2], device=q.device), backend=backend)[0]

    span = KEEP + bench.pick(192, 32)
    yield from large(bench, "linear", "decay of 1", call, keys=span, queries=span)


def lightning(
    bench: Bench, name: str, shape: Shape, goals: Goals = NO_GOALS, *ratios: Ratio, always: bool = False
) -> Timed:
    """Lightning attention and its peer: the share of the bandwidth."""
    nbytes = shape.numbers * bench.dtype.itemsize
    moved = timed.of_memory(bench, {way: count * nbytes for way, count in ARRAYS.items()}, goals)
    over, case = Ratio(f"over {FLA}", FLA, each_way(">= 1.3")), attention(name, shape)
    peers = lambda: fla_peer(bench)  # noqa: E731
    return Timed(case, peers, (BOTH, FORWARD), (moved,), (over, *ratios), same=FLA, always=always)


@piece("cuda", "linear")
def contexts(bench: Bench) -> Iterator[Timed]:
    """All contexts with the same number of tokens: share of the bandwidth, memory, flatness. Exact ones: contexts."""
    tokens, heads, width = bench.pick((512 * 1024, 16, 128), (32, 2, 16))
    shapes = [Shape(tokens // n, n, heads, width) for n in bench.pick([1024 << i for i in range(10)], [16, 32])]
    yield from (lightning(bench, "lightning", shape, ROOFLINE) for shape in shapes)
    for direction in ARRAYS:
        ratio = timed.flatness(bench, "lightning", [shape for shape in shapes if shape.length <= FLAT], direction)
        if ratio:
            row = Row("all contexts up to 128k", Shape(1, tokens, heads, width), bench.dtype, "ours", direction)
            bench.add(row, "slowest over fastest tokens/s", 1 / ratio, "", ">= 0.95")


@piece("first", "lightning-8k", length=8192)
@piece("first", "lightning-64k", length=65_536)
def headline(bench: Bench, length: int) -> Iterator[Timed]:
    """One context."""
    tokens, context, heads, width = bench.pick((256 * 1024, length, 16, 128), (32, 16, 2, 16))
    yield lightning(bench, "lightning", Shape(tokens // context, context, heads, width), ROOFLINE)


@piece("cuda", "few_heads")
def few_heads(bench: Bench) -> Iterator[Timed]:
    """One row of few heads over a long context, per byte, against a batch that fills the GPU."""
    many, counts = bench.pick((Shape(4, 64 * 1024, 32, 128), (8, 1, 4, 16)), (Shape(2, 32, 2, 16), (1,)))
    yield lightning(bench, "saturated", many, ROOFLINE, always=True)
    for heads in counts:
        goals, share = each_way("<= 1.5") if heads == 8 else NO_GOALS, heads / (many.batch * many.heads)
        ratio = Ratio("time per byte over saturated", "ours", goals, row=("saturated", many), share=share)
        yield lightning(bench, "few heads", Shape(1, many.length, heads, many.width), NO_GOALS, ratio)


@piece("cuda", "widths")
def widths(bench: Bench) -> Iterator[Timed]:
    """Heads 64, 128 and 256 wide, with the same number of bytes."""
    batch, length, numbers, sizes = bench.pick((4, 8192, 64 * 128, (64, 128, 256)), (1, 16, 64, (16, 32)))
    shapes = [Shape(batch, length, numbers // width, width) for width in sizes]
    wider = Ratio("time per byte over half as wide", "ours", each_way("<= 2.5"), row=("widths", shapes[-2]), share=1.0)
    for shape in shapes:
        goals, ratios = ROOFLINE if shape.width == 128 else NO_GOALS, (wider,) if shape == shapes[-1] else ()
        yield lightning(bench, "widths", shape, goals, *ratios)


def of_step(shape: Shape, device: torch.device) -> Arrays:
    """Decay and state of a step."""
    state = torch.zeros(shape.batch, shape.heads, shape.width, shape.width, device=device)
    return {"log_decay": slopes(shape.heads, device), "state": state}


def step(name: str, shape: Shape) -> Case:
    """One step, which updates its state."""
    sizes = dict.fromkeys("qkv", (shape.batch, shape.heads, shape.width))
    return Case(name, shape, linear_attention_step, sizes, lambda device: of_step(shape, device))


@piece("cuda", "decode", batches=(1, 4, 32, 256))
@piece("first", "decode", batches=(1,))
def steps(bench: Bench, batches: tuple[int, ...]) -> Iterator[Timed]:
    """Steps over batch sizes: by the GPU's time, by the host's, and inside a CUDA graph."""
    heads, width = bench.pick((64, 128), (2, 16))
    for shape in (Shape(batch, 1, heads, width) for batch in bench.pick(batches, (1,))):
        on_gpu = microseconds("GPU time", goals={FORWARD: "<= 15"} if shape.batch <= 4 else NO_GOALS)
        moved = timed.of_memory(bench, {FORWARD: 8 * shape.batch * heads * width**2})
        yield Timed(step("linear step", shape), lambda: fla_peer(bench, step=True), (FORWARD,), (on_gpu, moved))
        for how, clock, told in (("eager", HOST, microseconds("host time")), ("in a CUDA graph", GRAPH, on_gpu)):
            yield Timed(step(f"linear step, {how}", shape), directions=(FORWARD,), metrics=(told,), clock=clock)


@piece("cuda", "overhead")
def overhead(bench: Bench) -> Iterator[Timed]:
    """Host time of eager calls on arrays so small that the GPU does not matter."""
    shape, told = bench.pick(Shape(1, 64, 1, 64), Shape(1, 16, 2, 16)), microseconds("per call")
    aimed, peers = told._replace(goals={FORWARD: "<= 60"}), lambda: fla_peer(bench)
    yield Timed(attention("linear", shape), peers, (FORWARD, BOTH), (aimed,), clock=HOST)
    yield Timed(step("linear step", shape), directions=(FORWARD,), metrics=(told,), clock=HOST)


@piece("cpu", "linear")
def on_a_cpu(bench: Bench) -> Iterator[Timed]:
    """Lightning against exact attention over contexts, forward and backward, and its time per token."""
    shapes = [Shape(1, length, 8, 64) for length in CPU_LENGTHS[bench.options.scale]]
    for shape in shapes:
        over = Ratio("over sdpa", "sdpa", {BOTH: CPU_RATIOS[shape.length]} if shape.length in CPU_RATIOS else NO_GOALS)
        case, time = attention("lightning", shape), microseconds("per token", shape.length)
        yield Timed(case, lambda: {"sdpa": sdpa()}, (BOTH,), (time,), (over,))
    long = [shape for shape in shapes if shape.length >= 2048]
    ratio = timed.flatness(bench, "lightning", long, BOTH)
    if ratio:
        row = Row("lightning, 2k and more", long[-1], bench.dtype, "ours", BOTH)
        bench.add(row, "slowest over fastest time per token", ratio, "x", "<= 1.3")
