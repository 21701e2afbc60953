"""Cases that compare the families with each other: contexts, and the CPU's decoding."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo_kernels.bench.bench import Bench
from zoo_kernels.bench.case import MILLISECONDS, Case, Forms, Ratio, Together, constant, microseconds, rates
from zoo_kernels.bench.inputs import slopes
from zoo_kernels.bench.peers import causal_mask, flex_peer, sdpa_peers
from zoo_kernels.bench.record import BOTH, FORWARD, Row, Shape
from zoo_kernels.bench.registry import piece
from zoo_kernels.linear.api import linear_attention, linear_attention_step
from zoo_kernels.linear.cases import lightning_forms
from zoo_kernels.softmax.api import softmax_attention_step
from zoo_kernels.softmax.cases import AIM, GOALS, ours

LIGHTNING, SOFTMAX = "ours, lightning", "ours, softmax"
LEAD = {FORWARD: 2048, BOTH: 4096}  # tokens from which lightning must be faster than our exact attention
LONG = 64 * 1024  # tokens beyond which exact attention takes most of the minutes


def _exact_and_lightning(bench: Bench, shape: Shape) -> Forms:
    lightning = lightning_forms(bench, shape, LIGHTNING)[LIGHTNING]
    return {LIGHTNING: lightning, SOFTMAX: ours(bench)} | sdpa_peers(bench)


def _flex(bench: Bench, shape: Shape) -> Forms:
    return flex_peer(bench, f"contexts {shape}", lambda: causal_mask(shape.length, bench.device))


@piece("cuda", "contexts_forward", direction=FORWARD)
@piece("cuda", "contexts_training", direction=BOTH)
def contexts(bench: Bench, direction: str) -> Iterator[Case]:
    """All contexts with the same number of tokens, the shortest first, and those that take minutes last.

    FlexAttention, which is compiled anew for each, has a row of its own at every other length.
    """
    tokens, heads, width = bench.pick((512 * 1024, 16, 128), (32, 2, 16))
    lengths = bench.pick([1024 << i for i in range(10)], [16, 32])
    short, long = ([t for t in lengths if (t <= LONG) == is_short] for is_short in (True, False))
    shapes = {length: Shape(tokens // length, length, heads, width) for length in lengths}
    for some, compiled in ((short, short[::2]), (long, long[1::2])):
        yield from (_context(shapes[length], direction) for length in some)
        yield from (_context(shapes[length], direction, flex=True) for length in compiled)
    tell_leads(bench, list(shapes.values()), direction)


def _context(shape: Shape, direction: str, flex: bool = False) -> Case:
    goals = GOALS if shape.length >= AIM and direction == FORWARD else {}
    exact = rates(shape, goals, whose=(SOFTMAX, "sdpa", "flex"))
    if flex:
        over_flex = Ratio("over flex", "flex", of=SOFTMAX)
        return Case("contexts", shape, _flex, (direction,), exact, (over_flex,))
    ahead = {direction: ">= 1"}
    ratios = (
        Ratio(f"over {SOFTMAX}", SOFTMAX, ahead if shape.length >= LEAD[direction] else {}, of=LIGHTNING),
        Ratio("over sdpa flash", "sdpa flash", ahead, of=SOFTMAX),
    )
    metrics = MILLISECONDS._replace(whose=(LIGHTNING,)), *exact
    return Case("contexts", shape, _exact_and_lightning, (direction,), metrics, ratios)


def tell_leads(bench: Bench, shapes: list[Shape], direction: str) -> None:
    """The shortest context from which on lightning is faster in every row: than our exact attention, than any."""
    row = Row("lightning leads", shapes[-1], bench.dtype, LIGHTNING, direction)
    for rivals, goal in (("ours", f"<= {LEAD[direction]}"), ("any", None)):
        first = None
        for shape in reversed(shapes):
            found = bench.times.get(("contexts", shape, direction), {})
            others = [t.median for who, t in found.items() if who != LIGHTNING and (rivals == "any" or who == SOFTMAX)]
            if not others or LIGHTNING not in found:
                continue
            if min(others) <= found[LIGHTNING].median:
                break
            first = shape.length
        if first is None:
            bench.note(f"lightning does not lead {rivals} exact attention at the longest context measured")
        else:
            bench.add(row, f"from, {rivals} exact", first, "tokens", goal)


@piece("cpu", "linear")
def causal(bench: Bench) -> Iterator[Case]:
    """Forward alone, since FlexAttention has no more on the CPU."""
    shape = Shape(1, bench.pick(8192, 0, 4096), 8, 64)
    time = microseconds("per token", shape.length)
    yield Case("causal", shape, lambda *given: _exact_and_lightning(*given) | _flex(*given), (FORWARD,), (time,))


@piece("cpu", "decode")
def decode(bench: Bench) -> Iterator[Together]:
    """One step after contexts of different lengths: lightning must not notice, softmax grows."""
    shapes = [Shape(1, context, 8, 64) for context in bench.pick([1024 << i for i in range(7)], [], [1024, 4096])]
    longest = Ratio("longest over shortest", "lightning", {FORWARD: "<= 1.1"}, "lightning", ("decode", shapes[0]), 1.0)
    cases = []
    for shape in shapes:
        numbers = dict.fromkeys(("softmax", "sdpa"), shape.heads * shape.width * 2 * shape.length)
        numbers["lightning"] = shape.heads * shape.width**2
        kept = (constant("kept", 4 * count / 2**20, "MiB", who) for who, count in numbers.items())
        metrics = microseconds("per token"), *kept
        ratios = (longest,) if shape == shapes[-1] else ()
        cases.append(Case("decode", shape, _steps, (FORWARD,), metrics, ratios, queries=1))
    yield Together(f"decode, contexts side by side: {', '.join(str(shape.length) for shape in shapes)}", tuple(cases))


def _steps(bench: Bench, shape: Shape) -> Forms:
    """Steps that continue from a context of random tokens."""
    q, k, v = torch.randn(3, 1, shape.length, shape.heads, shape.width, device=bench.device)
    decay = slopes(shape.heads, bench.device)
    state = linear_attention(q, k, v, decay, return_state=True)[1]
    assert state is not None
    lengths = torch.tensor([shape.length])
    heads_first = k.transpose(1, 2).contiguous(), v.transpose(1, 2).contiguous()

    def peer(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q.transpose(1, 2), *heads_first)

    return {
        "lightning": lambda q, k, v: linear_attention_step(q[:, 0], k[:, -1], v[:, -1], decay, state),
        "softmax": lambda q, k, v: softmax_attention_step(q[:, 0], k, v, lengths),
        "sdpa": peer,
    }
