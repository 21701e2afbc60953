"""Rows that compare the families with each other: contexts, and the CPU's decoding."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from zoo_kernels.bench.bench import Bench
from zoo_kernels.bench.peers import sdpa, sdpa_peers
from zoo_kernels.bench.record import BOTH, FORWARD, Row, Shape
from zoo_kernels.bench.registry import piece
from zoo_kernels.bench.timed import MILLISECONDS, NO_GOALS, Forms, Ratio, Timed, Together, constant, microseconds, rates
from zoo_kernels.linear import bench_cases as linear
from zoo_kernels.linear.api import linear_attention, linear_attention_step
from zoo_kernels.softmax import bench_cases as softmax

LIGHTNING, SOFTMAX = "ours, lightning", "ours, softmax"
LEAD = {FORWARD: 2048, BOTH: 4096}  # tokens from which lightning must be faster than our exact attention
LONG = 64 * 1024  # tokens beyond which exact attention takes most of the minutes


def _peers(bench: Bench, shape: Shape) -> Forms:
    decay, attend = linear.decays("slopes", *shape[:3], bench.device), bench.ours(linear_attention)
    return {LIGHTNING: lambda q, k, v, **_: attend(q, k, v, decay)[0]} | sdpa_peers(bench)


@piece("cuda", "contexts_forward", direction=FORWARD)
@piece("cuda", "contexts_training", direction=BOTH)
def contexts(bench: Bench, direction: str) -> Iterator[Timed]:
    """All contexts with the same number of tokens, the shortest first, and those that take minutes last.

    FlexAttention, which is compiled anew for each, has a row of its own at every other length.
    """
    tokens, heads, width = bench.pick((512 * 1024, 16, 128), (32, 2, 16))
    lengths = bench.pick([1024 << i for i in range(10)], [16, 32])
    shapes = [Shape(tokens // length, length, heads, width) for length in lengths]
    short, long = ([s for s in shapes if (s.length <= LONG) == is_short] for is_short in (True, False))
    for some, compiled in ((short, short[::2]), (long, long[1::2])):
        yield from (_context(bench, shape, direction) for shape in some)
        yield from (_context(bench, shape, direction, flex=True) for shape in compiled)
    tell_leads(bench, shapes, direction)


def _context(bench: Bench, shape: Shape, direction: str, flex: bool = False) -> Timed:
    goals = softmax.GOALS if shape.length >= softmax.AIM and direction == FORWARD else NO_GOALS
    told, case = rates(bench, shape, goals, whose=(SOFTMAX, "sdpa", "flex")), softmax.attention("contexts", shape)
    if flex:
        ratio, peers = Ratio("over flex", "flex", of=SOFTMAX), partial(softmax.flexible, bench, shape)
        return Timed(case, peers, (direction,), told, (ratio,), ours="")
    ahead = {direction: ">= 1"}
    ratios = (
        Ratio(f"over {SOFTMAX}", SOFTMAX, ahead if shape.length >= LEAD[direction] else NO_GOALS, of=LIGHTNING),
        Ratio("over sdpa flash", "sdpa flash", ahead, of=SOFTMAX),
    )
    metrics = MILLISECONDS._replace(whose=(LIGHTNING,)), *told
    return Timed(case, partial(_peers, bench, shape), (direction,), metrics, ratios, ours=SOFTMAX)


def tell_leads(bench: Bench, shapes: list[Shape], direction: str) -> None:
    """The shortest context from which on lightning is faster in every row: than our exact attention, than any."""
    row = Row("lightning leads", shapes[-1], bench.dtype, LIGHTNING, direction)
    for rivals, prefix, goal in (("ours", SOFTMAX, f"<= {LEAD[direction]}"), ("any", "", None)):
        first = None
        for shape in reversed(shapes):
            found = {who: t.median for who, t in bench.times.get(("contexts", shape, direction), {}).items()}
            lightning = found.pop(LIGHTNING, None)
            others = [median for who, median in found.items() if who.startswith(prefix)]
            if others and lightning is not None:
                if min(others) <= lightning:
                    break
                first = shape.length
        if first is None:
            bench.note(f"lightning does not lead {rivals} exact attention at the longest context measured")
        else:
            bench.add(row, f"from, {rivals} exact", first, "tokens", goal)


@piece("cpu", "linear")
def causal(bench: Bench) -> Iterator[Timed]:
    """Forward alone, since FlexAttention has no more on the CPU."""
    shape = Shape(1, bench.pick(8192, 0, 4096), 8, 64)
    case, time = softmax.attention("causal", shape), microseconds("per token", shape.length)

    def peers() -> Forms:
        return _peers(bench, shape) | softmax.flexible(bench, shape)

    yield Timed(case, peers, (FORWARD,), (time,), ours=SOFTMAX)


@piece("cpu", "decode")
def decode(bench: Bench) -> Iterator[Together]:
    """One step after contexts of different lengths: lightning must not notice, softmax grows."""
    shapes = [Shape(1, context, 8, 64) for context in bench.pick([1024 << i for i in range(7)], [], [1024, 4096])]
    longest = Ratio("longest over shortest", "lightning", {FORWARD: "<= 1.1"}, "lightning", ("decode", shapes[0]), 1.0)
    rows = []
    for shape in shapes:
        cache = shape.heads * shape.width * 2 * shape.length
        numbers = {"lightning": shape.heads * shape.width**2, "softmax": cache, "sdpa": cache}
        kept = (constant("kept", 4 * count / 2**20, "MiB", who) for who, count in numbers.items())
        metrics, ratios = (microseconds("per token"), *kept), (longest,) if shape == shapes[-1] else ()
        case, peers = softmax.step("decode", shape), partial(_steps, bench, shape)
        rows.append(Timed(case, peers, (FORWARD,), metrics, ratios, ours="softmax"))
    yield Together(f"decode, contexts side by side: {', '.join(str(shape.length) for shape in shapes)}", tuple(rows))


def _steps(bench: Bench, shape: Shape) -> Forms:
    """A step of lightning, and PyTorch's over keys and values that are stored heads first."""
    about = linear.step("decode", shape).draw(bench.device, bench.dtype)
    size = 2, 1, shape.heads, shape.length, shape.width
    stored = torch.randn(size, device=bench.device).transpose(2, 3)

    def lightning(q: Tensor, k: Tensor, v: Tensor, **_: Tensor) -> Tensor:
        return linear_attention_step(q, k[:, -1], v[:, -1], about["log_decay"], about["state"])

    plain = sdpa()
    return {"lightning": lightning, "sdpa": lambda q, **_: plain(q, *stored)}
