"""What zoo_kernels.bench times of linear attention: whole sequences, and steps of decoding."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from zoo_kernels.bench import rows
from zoo_kernels.bench.bench import Bench
from zoo_kernels.bench.case import Arrays, Case
from zoo_kernels.bench.check import KEEP, Checked, large
from zoo_kernels.bench.peers import fla_peer
from zoo_kernels.bench.record import BOTH, FORWARD, Shape
from zoo_kernels.bench.registry import Item, piece
from zoo_kernels.bench.timed import NO_GOALS, Flat, Goals, Ratio, Timed, each_way
from zoo_kernels.linear.api import linear_attention, linear_attention_step

ROOFLINE = {FORWARD: ">= 50", BOTH: ">= 35"}  # per cent
FLAT = 128 * 1024  # tokens up to which the speed must not depend on the context
RULE = "simple_gla"  # lightning attention by its name in flash-linear-attention


def slopes(heads: int, device: torch.device) -> Tensor:
    """Log decays ``(H,)`` of lightning attention's first layer, ``-2^(-8 (h + 1) / H)``, fp32."""
    return -torch.exp2(-8 * torch.arange(1, heads + 1, device=device) / heads)


def of_channels(shape: Shape, device: torch.device) -> Tensor:
    """Log decays of every token and channel, fp32."""
    return -0.1 * torch.rand(shape.batch, shape.length, shape.heads, shape.width, device=device)


def attention(name: str, shape: Shape, by_channel: bool = False) -> Case:
    """A call over whole sequences, which gives the output alone: lightning, or with a decay per channel."""

    def call(**x: Any) -> Tensor:
        return linear_attention(**x)[0]

    def other(device: torch.device) -> Arrays:
        return {"log_decay": of_channels(shape, device) if by_channel else slopes(shape.heads, device)}

    return Case.whole(name, shape, call, other, *(["log_decay"] if by_channel else []))


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
    """Lightning attention and its peer."""
    case, lead = attention(name, shape), each_way(">= 1.3")
    return rows.beside_fla(bench, case, RULE, rows.ARRAYS, goals, lead, ratios, always)


def channels(bench: Bench, shape: Shape) -> Timed:
    """A decay per channel and its peer."""
    return rows.beside_fla(bench, attention("decay per channel", shape, by_channel=True), "gla", rows.WITH_DECAYS)


@piece("cuda", "linear")
def contexts(bench: Bench) -> Iterator[Item]:
    """Lightning at all contexts, and how flat it is; a decay per channel at some. Exact ones: contexts."""
    shapes = rows.all_contexts(bench)
    yield from (lightning(bench, "lightning", shape, ROOFLINE) for shape in shapes)
    yield Flat("lightning", [shape for shape in shapes if shape.length <= FLAT], dict.fromkeys(rows.ARRAYS, "<= 1.05"))
    yield from (channels(bench, shape) for shape in shapes[::3])


@piece("first", "lightning-8k", length=8192)
@piece("first", "lightning-64k", length=65_536)
def headline(bench: Bench, length: int) -> Iterator[Timed]:
    """One context."""
    yield lightning(bench, "lightning", rows.one_context(bench, length), ROOFLINE)


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
    return Case(name, shape, linear_attention_step, sizes, partial(of_step, shape))


@piece("cuda", "decode", batches=(1, 4, 32, 256))
@piece("first", "decode", batches=(1,))
def steps(bench: Bench, batches: tuple[int, ...]) -> Iterator[Timed]:
    """Steps over batch sizes."""
    peers = partial(fla_peer, bench, RULE, step=True)
    for shape in rows.one_token(bench, batches):
        goals = {FORWARD: "<= 15"} if shape.batch <= 4 else NO_GOALS
        yield from rows.of_step(step("linear step", shape), peers, rows.of_state(bench, shape), goals=goals)


@piece("cuda", "overhead")
def overhead(bench: Bench) -> Iterator[Timed]:
    """Eager calls on small arrays."""
    yield from rows.of_host(
        bench, partial(fla_peer, bench, RULE), partial(attention, "linear"), partial(step, "linear step")
    )
