"""Rows that compare the families with each other: contexts, and the CPU's tables of training and decoding."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from zoo_kernels.bench.bench import Bench
from zoo_kernels.bench.case import Arrays, Case, Forms
from zoo_kernels.bench.peers import sdpa, sdpa_peers, transformers_peer
from zoo_kernels.bench.record import BOTH, FORWARD, Shape
from zoo_kernels.bench.registry import Item, piece
from zoo_kernels.bench.rows import all_contexts
from zoo_kernels.bench.timed import MILLISECONDS, NO_GOALS, Flat, Goals, Ratio, Timed, constant, microseconds, rates
from zoo_kernels.delta import bench_cases as delta
from zoo_kernels.delta.api import delta_attention, delta_attention_step
from zoo_kernels.delta.bench_cases import GATED, KDA
from zoo_kernels.linear import bench_cases as linear
from zoo_kernels.linear.api import linear_attention, linear_attention_step
from zoo_kernels.softmax import bench_cases as softmax

LIGHTNING, SOFTMAX, SDPA, GLA = "lightning", "softmax", "sdpa", "linear, decay per channel"
LEAD = {FORWARD: 2048, BOTH: 4096}  # tokens from which lightning must be faster than our exact attention
LENGTHS = {"full": [512 << i for i in range(8)], "quick": [512, 2048]}  # of the CPU's rows
THEIRS = {  # rules of transformers, with the contexts at which they take reasonable time and memory
    GATED: ((512, 2048, 8192), "qwen3_next.modeling_qwen3_next.torch_chunk_gated_delta_rule", "heads"),
    KDA: ((512, 2048), "kimi_linear.modeling_kimi_linear.chunk_kimi_delta_attention", "channels"),
}
FLAT = 2048  # tokens from which the time per token must not depend on the context
AIMS = {  # what of ours is told beside what, with the targets by context
    (LIGHTNING, SDPA): {512: ">= 2", 8192: ">= 16"},
    (GATED, SDPA): {length: ">= 1" for length in LENGTHS["full"] if length >= 1024},
    (KDA, SDPA): {length: ">= 1" for length in LENGTHS["full"] if length >= 2048},
    (GATED, "transformers"): {2048: ">= 2.5", 8192: ">= 5"},
    (KDA, "transformers"): {512: ">= 20", 2048: ">= 20"},
    (GATED, LIGHTNING): dict.fromkeys(LENGTHS["full"], "<= 3"),
    (KDA, LIGHTNING): dict.fromkeys(LENGTHS["full"], "<= 5"),
    (GLA, LIGHTNING): {},
}


def _peers(bench: Bench, shape: Shape, flex: bool) -> Forms:
    slopes, attend = linear.slopes(shape.heads, bench.device), bench.ours(linear_attention)
    peers = {LIGHTNING: lambda q, k, v, **_: attend(q, k, v, slopes)[0]} | sdpa_peers(bench)
    return peers | softmax.flexible(bench, shape) if flex else peers


@piece("cuda", "contexts_forward", direction=FORWARD)
@piece("cuda", "contexts_training", direction=BOTH)
def contexts(bench: Bench, direction: str) -> Iterator[Timed]:
    """All contexts with the same number of tokens, those that take minutes last; FlexAttention at every other one."""
    ahead = {direction: ">= 1"}
    for number, shape in enumerate(all_contexts(bench)):
        goals = softmax.GOALS if shape.length >= softmax.AIM and direction == FORWARD else NO_GOALS
        ratios = (
            Ratio(f"over {SOFTMAX}", SOFTMAX, ahead if shape.length >= LEAD[direction] else NO_GOALS, of=LIGHTNING),
            Ratio("over all exact", "", of=LIGHTNING),
            Ratio("over sdpa flash", "sdpa flash", ahead, of=SOFTMAX),
            Ratio("over flex", "flex", of=SOFTMAX),
        )
        peers = partial(_peers, bench, shape, number % 2 == 0)
        metrics = MILLISECONDS._replace(whose=(LIGHTNING,)), *rates(bench, shape, goals, whose=(SOFTMAX, SDPA, "flex"))
        yield Timed(softmax.attention("contexts", shape), peers, (direction,), metrics, ratios, ours=SOFTMAX)


@piece("cpu", "linear")
def training(bench: Bench) -> Iterator[Item]:
    """What grows with the length alone, forward and backward over contexts, beside exact attention and transformers."""
    shapes = [Shape(1, length, 8, 64) for length in LENGTHS[bench.options.scale]]
    for shape in shapes:
        ratios = tuple(_aim(*pair, {BOTH: x.get(shape.length)}) for pair, x in AIMS.items())
        time, peers = microseconds("per token", shape.length), partial(rules, bench, shape)
        yield Timed(training_case(shape), peers, (BOTH,), (time,), ratios, ours=LIGHTNING)
    long = [shape for shape in shapes if shape.length >= FLAT]
    yield from (Flat("training", long, {BOTH: "<= 1.3"}, whose) for whose in (LIGHTNING, GATED, KDA, GLA))


def _aim(of: str, beside: str, goals: Goals) -> Ratio:
    if beside == LIGHTNING:
        return Ratio(f"time over {beside}", beside, goals, of, share=1.0)
    return Ratio(f"over {beside}", f"{beside}, {of}" if beside == "transformers" else beside, goals, of)


def training_case(shape: Shape) -> Case:
    """Lightning attention, with the arguments of the others: decays of heads and of channels."""

    def other(device: torch.device) -> Arrays:
        size = shape.batch, shape.length, shape.heads
        of_heads, of_channels = (delta.gates(rule, device, *size, width=shape.width) for rule in (GATED, KDA))
        return {"heads": of_heads["log_decay"], "channels": of_channels["log_decay"], "beta": of_heads["beta"]}

    slopes = linear.slopes(shape.heads, torch.device("cpu"))

    def lightning(q: Tensor, k: Tensor, v: Tensor, backend: str, **_: Tensor) -> Tensor:
        return linear_attention(q, k, v, slopes, backend=backend)[0]

    return Case.whole("training", shape, lightning, other, "heads", "channels", "beta")


def rules(bench: Bench, shape: Shape) -> Forms:
    """Yields what is timed beside lightning attention."""
    forms: Forms = {
        GATED: lambda q, k, v, heads, beta, **_: delta_attention(q, k, v, heads, beta=beta)[0],
        KDA: lambda q, k, v, channels, beta, **_: delta_attention(q, k, v, channels, beta=beta)[0],
        GLA: lambda q, k, v, channels, **_: linear_attention(q, k, v, channels)[0],
        SDPA: sdpa(),
    }
    for rule, (lengths, path, decays) in THEIRS.items():
        if shape.length in lengths:
            forms |= transformers_peer(bench, f"transformers, {rule}", path, decays)
    return forms


@piece("cpu", "linear")
def causal(bench: Bench) -> Iterator[Timed]:
    """Forward alone, since FlexAttention has no more on the CPU."""
    shape = Shape(1, bench.pick(8192, 0, 4096), 8, 64)
    time, peers = microseconds("per token", shape.length), partial(_peers, bench, shape, True)
    yield Timed(softmax.attention("causal", shape), peers, (FORWARD,), (time,), ours=SOFTMAX)


@piece("cpu", "decode")
def decode(bench: Bench) -> Iterator[Timed]:
    """One step after contexts of different lengths: what has a state must not notice, softmax grows."""
    shapes = [Shape(1, context, 8, 64) for context in bench.pick([1024 << i for i in range(7)], [], [1024, 4096])]
    for shape in shapes:
        state, cache = shape.heads * shape.width**2, 2 * shape.numbers
        numbers = dict.fromkeys((LIGHTNING, GATED, KDA), state) | {SOFTMAX: cache, SDPA: cache}
        kept = (constant("kept", 4 * count / 2**20, "MiB", who) for who, count in numbers.items())
        ratios = tuple(
            Ratio("longest over shortest", who, {FORWARD: "<= 1.1"}, who, ("decode", shapes[0]), 1.0)
            for who in (LIGHTNING, GATED, KDA)
            if shape == shapes[-1]
        )
        metrics, peers = (microseconds("per token"), *kept), partial(_steps, bench, shape)
        yield Timed(softmax.step("decode", shape), peers, (FORWARD,), metrics, ratios, ours=SOFTMAX)


def _steps(bench: Bench, shape: Shape) -> Forms:
    """Steps of what has a state, and PyTorch's over keys and values that are stored heads first."""
    about, plain = linear.of_step(shape, bench.device), sdpa()
    gated, kda = (delta.of_step(rule, shape, bench.device) for rule in (GATED, KDA))
    stored = torch.randn(2, 1, shape.heads, shape.length, shape.width, device=bench.device).transpose(2, 3)
    return {
        LIGHTNING: lambda q, k, v, **_: linear_attention_step(q, k[:, -1], v[:, -1], **about),
        GATED: lambda q, k, v, **_: delta_attention_step(q, k[:, -1], v[:, -1], **gated),
        KDA: lambda q, k, v, **_: delta_attention_step(q, k[:, -1], v[:, -1], **kda),
        SDPA: lambda q, **_: plain(q, *stored),
    }
