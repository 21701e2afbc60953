"""Rows that compare the families with each other: contexts, and the CPU's decoding."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from zoo_kernels.bench.bench import Bench
from zoo_kernels.bench.peers import sdpa, sdpa_peers
from zoo_kernels.bench.record import BOTH, FORWARD, Shape
from zoo_kernels.bench.registry import piece
from zoo_kernels.bench.timed import MILLISECONDS, NO_GOALS, Forms, Ratio, Timed, constant, microseconds, rates
from zoo_kernels.linear import bench_cases as linear
from zoo_kernels.linear.api import linear_attention, linear_attention_step
from zoo_kernels.softmax import bench_cases as softmax

LIGHTNING, SOFTMAX = "ours, lightning", "ours, softmax"
LEAD = {FORWARD: 2048, BOTH: 4096}  # tokens from which lightning must be faster than our exact attention


def _peers(bench: Bench, shape: Shape, flex: bool) -> Forms:
    slopes, attend = linear.slopes(shape.heads, bench.device), bench.ours(linear_attention)
    peers = {LIGHTNING: lambda q, k, v, **_: attend(q, k, v, slopes)[0]} | sdpa_peers(bench)
    return peers | softmax.flexible(bench, shape) if flex else peers


@piece("cuda", "contexts_forward", direction=FORWARD)
@piece("cuda", "contexts_training", direction=BOTH)
def contexts(bench: Bench, direction: str) -> Iterator[Timed]:
    """All contexts with the same number of tokens, those that take minutes last; FlexAttention at every other one."""
    tokens, heads, width = bench.pick((512 * 1024, 16, 128), (32, 2, 16))
    ahead = {direction: ">= 1"}
    for number, length in enumerate(bench.pick([1024 << i for i in range(10)], [16, 32])):
        shape = Shape(tokens // length, length, heads, width)
        goals = softmax.GOALS if length >= softmax.AIM and direction == FORWARD else NO_GOALS
        told = rates(bench, shape, goals, whose=(SOFTMAX, "sdpa", "flex"))
        ratios = (
            Ratio(f"over {SOFTMAX}", SOFTMAX, ahead if length >= LEAD[direction] else NO_GOALS, of=LIGHTNING),
            Ratio("over all exact", "", of=LIGHTNING),
            Ratio("over sdpa flash", "sdpa flash", ahead, of=SOFTMAX),
            Ratio("over flex", "flex", of=SOFTMAX),
        )
        peers, metrics = (
            partial(_peers, bench, shape, number % 2 == 0),
            (MILLISECONDS._replace(whose=(LIGHTNING,)), *told),
        )
        yield Timed(softmax.attention("contexts", shape), peers, (direction,), metrics, ratios, ours=SOFTMAX)


@piece("cpu", "linear")
def causal(bench: Bench) -> Iterator[Timed]:
    """Forward alone, since FlexAttention has no more on the CPU."""
    shape = Shape(1, bench.pick(8192, 0, 4096), 8, 64)
    time, peers = microseconds("per token", shape.length), partial(_peers, bench, shape, True)
    yield Timed(softmax.attention("causal", shape), peers, (FORWARD,), (time,), ours=SOFTMAX)


@piece("cpu", "decode")
def decode(bench: Bench) -> Iterator[Timed]:
    """One step after contexts of different lengths: lightning must not notice, softmax grows."""
    shapes = [Shape(1, context, 8, 64) for context in bench.pick([1024 << i for i in range(7)], [], [1024, 4096])]
    longest = Ratio("longest over shortest", "lightning", {FORWARD: "<= 1.1"}, "lightning", ("decode", shapes[0]), 1.0)
    for shape in shapes:
        cache = 2 * shape.numbers
        numbers = {"lightning": shape.heads * shape.width**2, "softmax": cache, "sdpa": cache}
        kept = (constant("kept", 4 * count / 2**20, "MiB", who) for who, count in numbers.items())
        metrics, ratios = (microseconds("per token"), *kept), (longest,) if shape == shapes[-1] else ()
        peers = partial(_steps, bench, shape)
        yield Timed(softmax.step("decode", shape), peers, (FORWARD,), metrics, ratios, ours="softmax")


def _steps(bench: Bench, shape: Shape) -> Forms:
    """A step of lightning, and PyTorch's over keys and values that are stored heads first."""
    about, plain = linear.of_step(shape, bench.device), sdpa()
    stored = torch.randn(2, 1, shape.heads, shape.length, shape.width, device=bench.device).transpose(2, 3)
    return {
        "lightning": lambda q, k, v, **_: linear_attention_step(q, k[:, -1], v[:, -1], **about),
        "sdpa": lambda q, **_: plain(q, *stored),
    }
