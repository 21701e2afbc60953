"""What is timed of softmax attention, for zoo_kernels.bench: rates, windows, layouts and steps beside their peers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor

from zoo_kernels.bench.bench import Bench
from zoo_kernels.bench.case import (
    MILLISECONDS,
    NO_GOALS,
    Case,
    Forms,
    Goals,
    Ratio,
    constant,
    microseconds,
    of_memory,
    rates,
)
from zoo_kernels.bench.clock import GraphClock, HostClock, WallClock
from zoo_kernels.bench.inputs import Attention
from zoo_kernels.bench.patterns import bigbird_blocks, longformer_blocks, window_blocks, window_pairs
from zoo_kernels.bench.peers import causal_mask, flex_peer, sdpa, sdpa_peers
from zoo_kernels.bench.record import BACKWARD, BOTH, FORWARD, Shape
from zoo_kernels.bench.registry import piece
from zoo_kernels.layout import BlockLayout
from zoo_kernels.softmax.api import softmax_attention, softmax_attention_step
from zoo_kernels.softmax.checks import banded

GOALS = {FORWARD: ">= 480", BACKWARD: ">= 350"}  # TFLOP/s
AIM = 8192  # tokens from which they hold, at a width of 128
WINDOWS = ((1024, 0), (4096, 0), (256, 0), (1024, 4), (128, 0), (16384, 0))  # tokens, and first tokens kept visible


def both_ways(goal: str) -> Goals:
    """The same target forward and backward."""
    return dict.fromkeys((FORWARD, BACKWARD, BOTH), goal)


def ours(bench: Bench, **options: Any) -> Attention:
    """This project's kernel."""
    attention = bench.ours(softmax_attention)
    return lambda q, k, v: attention(q, k, v, **options)


def _forms(mask: Callable[[], Any] | None, dense: bool = False, **options: Any) -> Callable[[Bench, Shape], Forms]:
    """Ours with some options, FlexAttention if it has a mask, and PyTorch's kernels over all pairs if ``dense``."""

    def make(bench: Bench, shape: Shape) -> Forms:
        found = {"ours": ours(bench, **options)} | (sdpa_peers(bench) if dense else {})
        return found | (flex_peer(bench, str(shape), mask) if mask else {})

    return make


def _causal(bench: Bench, name: str, shape: Shape, goals: Goals = NO_GOALS, *ratios: Ratio, flex: bool = True) -> Case:
    """Exact attention in all implementations: rates, memory, the lead over PyTorch's flash kernel."""
    lead = Ratio("over sdpa flash", "sdpa flash", both_ways(">= 1"))
    mask = (lambda: causal_mask(shape.length, bench.device)) if flex else None
    return Case(name, shape, _forms(mask, True), metrics=rates(shape, goals), ratios=(lead, *ratios))


@piece("cuda", "softmax")
@piece("first", "flash-8k", first=1, flex=False)
def softmax(bench: Bench, first: int = 5, flex: bool = True) -> Iterator[Case]:
    """Long rows at a width of 128, then heads 64 and 256 wide; FlexAttention is compiled for long."""
    shapes = [Shape(max(1, 16384 // t), t, 16, 128) for t in (AIM, 2 * AIM, 4 * AIM)]
    shapes += [Shape(2, AIM, 32, 64), Shape(2, AIM, 8, 256)]
    for shape in bench.pick(shapes[:first], [Shape(1, 33, 2, 16)]):
        yield _causal(bench, "causal", shape, GOALS if shape.width == 128 else {}, flex=flex)


@piece("cuda", "few_heads_exact")
def few_heads(bench: Bench) -> Iterator[Case]:
    """One row of few heads over a long context."""
    length, width, counts = bench.pick((64 * 1024, 128, (8, 1, 4, 16)), (33, 16, (1,)))
    yield from (_causal(bench, "few heads", Shape(1, length, heads, width)) for heads in counts)


@piece("cuda", "gqa")
def gqa(bench: Bench) -> Iterator[Case]:
    """Query heads that share key heads: the time against as many key heads as query heads."""
    full, counts = bench.pick((Shape(2, 8192, 32, 128, 32), (8, 4, 1)), (Shape(1, 20, 2, 16, 2), (1,)))
    yield _causal(bench, "gqa", full)
    for groups in counts:
        ratio = Ratio("time over MHA", "ours", both_ways("<= 1.1"), row=("gqa", full), share=1.0)
        yield _causal(bench, "gqa", full._replace(groups=groups), {}, ratio)


def _dense(shape: Shape) -> Case:
    """What rows with fewer pairs are compared with: ours and PyTorch's kernels over all pairs."""
    return Case("dense", shape, _forms(None, True), metrics=rates(shape), always=True)


def _part(
    name: str, shape: Shape, density: float, goals: Goals, mask: Callable[[], Any] | None, **options: Any
) -> Case:
    """Some of the pairs: rates, the time over density x dense, the lead over FlexAttention and over dense SDPA."""
    dense, metric = ("dense", shape), "over density x dense"
    ratios = (
        Ratio(metric, "ours", goals, row=dense, share=density),
        Ratio(metric, "ours", of="flex", row=dense, share=density),
        Ratio("over flex", "flex", both_ways(">= 1.2")),
        Ratio("over dense sdpa", "sdpa", row=dense),
    )
    metrics = *rates(shape, density=density), constant("density", 100 * density, "%")
    return Case(name, shape, _forms(mask, **options), metrics=metrics, ratios=ratios)


@piece("cuda", "windows")
@piece("first", "window-32k", sizes=WINDOWS[:1])
def windows(bench: Bench, sizes: tuple[tuple[int, int], ...] = WINDOWS) -> Iterator[Case]:
    """Windows over a long context, against the share of the pairs that they hold, and FlexAttention."""
    shape, sizes = bench.pick((Shape(1, 32768, 16, 128), sizes), (Shape(1, 20, 2, 16), ((8, 0), (8, 2))))
    yield _dense(shape)
    for window, first in sizes:
        mask = None if first else partial(causal_mask, shape.length, bench.device, window)
        name, density = f"window {window}" + (f", {first} sinks" if first else ""), window_pairs(shape.length, window)
        yield _part(name, shape, density, {}, mask, **banded(window, first))


def _visible(kind: str, block: int, shape: Shape) -> Tensor:
    """Blocks that each block of queries lists; of bigbird, half of the window's are random."""
    tokens = {"longformer": (1536, 512), "bigbird": (768, 512, 768)}[kind] if shape.length > 1024 else (16, 16, 16)
    near, first, *random = (n // block for n in tokens)
    blocks = -(-shape.length // block)
    if kind == "longformer":
        return longformer_blocks(blocks, near, first)
    return bigbird_blocks(blocks, shape.heads, near, first, *random)


@piece("cuda", "sparse")
@piece("first", "bigbird-32k", only=("bigbird", 128))
def sparse(bench: Bench, only: tuple[str, int] | None = None) -> Iterator[Case]:
    """Longformer- and BigBird-like layouts of about an eighth of the pairs, with the time to make them."""
    shape, sizes = bench.pick((Shape(1, 32768, 16, 128), (128, 64)), (Shape(1, 60, 2, 16), (16,)))
    yield _dense(shape)
    for kind, block in product(("longformer", "bigbird"), sizes):
        if only in (None, (kind, block)) or bench.dry:
            name, visible = f"{kind}, blocks of {block}", _visible(kind, block, shape).to(bench.device)
            yield _building(f"{name}, layout", shape, visible, block)
            layout = BlockLayout.from_blocks(visible, block)
            density = float(layout.density(shape.length))
            mask = partial(layout.to_block_mask, shape.length)
            yield _part(name, shape, density, both_ways("<= 1.15"), mask, layout=layout)


def _building(name: str, shape: Shape, visible: Tensor, block: int) -> Case:
    """Host time to make a layout, the wait for the GPU included."""

    def forms(bench: Bench, shape: Shape) -> Forms:
        def build(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            BlockLayout.from_blocks(visible, block)
            bench.wait()
            return q

        return {"ours": build}

    return Case(name, shape, forms, (FORWARD,), (MILLISECONDS,), clock=WallClock(5, 1.0, 0.0))


def _our_step(bench: Bench, shape: Shape) -> Forms:
    lengths = torch.full((shape.batch,), shape.length, device=bench.device)
    step = bench.ours(softmax_attention_step)
    return {"ours": lambda q, k, v: step(q[:, 0], k, v, lengths)[:, None]}


def _step_forms(bench: Bench, shape: Shape) -> Forms:
    peers = sdpa_peers(bench, causal=False) | flex_peer(bench, f"softmax step {shape}", lambda: None)
    return _our_step(bench, shape) | peers


def _steps(bench: Bench, shapes: list[Shape]) -> Iterator[Case]:
    """A step over a cache of each shape, against the bandwidth of the memory, and inside a CUDA graph."""
    for shape in shapes:
        nbytes = 2.0 * shape.batch * shape.length * shape.key_heads * shape.width * bench.dtype.itemsize
        goals = {FORWARD: ">= 80"} if shape.length >= 32768 else {}
        moved = of_memory(dict.fromkeys((FORWARD,), nbytes).__getitem__, goals)
        yield Case("softmax step", shape, _step_forms, (FORWARD,), (moved,), queries=1)
        told = (microseconds("GPU time"),)
        name = "softmax step, in a CUDA graph"
        yield Case(name, shape, _our_step, (FORWARD,), told, queries=1, clock=GraphClock())


@piece("cuda", "decode")
@piece("first", "decode", contexts=(32_768, 131_072), batches=())
def steps(
    bench: Bench, contexts: Iterable[int] = tuple(1024 << i for i in range(10)), batches: tuple[int, ...] = (8, 32)
) -> Iterator[Case]:
    """Steps over contexts, then batches, with eight key heads."""
    shapes = [Shape(1, t, 32, 128, 8) for t in contexts] + [Shape(b, 8192, 32, 128, 8) for b in batches]
    yield from _steps(bench, bench.pick(shapes, [Shape(1, 40, 4, 16, 2)]))


@piece("cuda", "overhead")
def overhead(bench: Bench) -> Iterator[Case]:
    """Host time of eager calls on arrays so small that the GPU does not matter."""
    shape, told = (
        bench.pick(Shape(1, 64, 1, 64), Shape(1, 16, 2, 16)),
        microseconds("per call", goals={FORWARD: "<= 60"}),
    )

    def forms(bench: Bench, shape: Shape) -> Forms:
        return {"ours": ours(bench), "sdpa": sdpa()}

    yield Case("softmax", shape, forms, (FORWARD, BOTH), (told,), clock=HostClock())
    yield Case("softmax step", shape, _our_step, (FORWARD,), (microseconds("per call"),), queries=1, clock=HostClock())


@piece("cpu", "sparse")
def on_a_cpu(bench: Bench) -> Iterator[Case]:
    """Three patterns of at most 16 % of the pairs against dense attention: target 0.6 / density."""
    shape, few = bench.pick(Shape(1, 8192, 8, 64), Shape(1, 0, 8, 64), Shape(1, 2048, 8, 64)), (2, 1, 1, 1)
    blocks, block = shape.length // 64, 64
    near, first, window, random = bench.pick((7, 2, 3, 3), few, few)
    patterns = {
        "window 256": window_blocks(blocks, 256 // block + 1),
        "longformer": longformer_blocks(blocks, near, 1),
        "bigbird": bigbird_blocks(blocks, shape.heads, window, first, random),
    }
    for name, visible in patterns.items():
        layout = BlockLayout.from_blocks(visible, block)
        density = float(layout.density(shape.length))
        options: dict[str, Any] = {"window": 256} if name.startswith("window") else {"layout": layout}
        yield _sparse_on_a_cpu(name, shape, density, layout, options)


def _sparse_on_a_cpu(name: str, shape: Shape, density: float, layout: BlockLayout, options: dict[str, Any]) -> Case:
    def forms(bench: Bench, shape: Shape) -> Forms:
        window = options.get("window")
        mask = (lambda: causal_mask(shape.length, bench.device, window)) if window else layout.to_block_mask
        return {"ours": ours(bench, **options), "sdpa, dense": sdpa()} | flex_peer(bench, name, mask)

    metrics = MILLISECONDS, constant("pairs in listed blocks", 100 * density, "%")
    ratio = Ratio("over dense", "sdpa, dense", {BOTH: f">= {0.6 / density:.2f}"})
    return Case(name, shape, forms, (BOTH, FORWARD), metrics, (ratio,))
