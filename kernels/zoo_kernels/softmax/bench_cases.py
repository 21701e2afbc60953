"""What zoo_kernels.bench times of softmax attention: whole sequences, layouts, and steps of decoding."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor

from zoo_kernels.bench import rows, timed
from zoo_kernels.bench.bench import Bench
from zoo_kernels.bench.case import Arrays, Case, Forms
from zoo_kernels.bench.check import KEEP, Checked, in_halves, is_step, large
from zoo_kernels.bench.clock import HOST
from zoo_kernels.bench.peers import causal_mask, flex_peer, sdpa, sdpa_peers
from zoo_kernels.bench.record import BACKWARD, BOTH, FORWARD, Shape
from zoo_kernels.bench.registry import piece
from zoo_kernels.bench.timed import NO_GOALS, Goals, Ratio, Timed, each_way
from zoo_kernels.layout import BlockLayout
from zoo_kernels.softmax.api import softmax_attention, softmax_attention_step
from zoo_kernels.tools.calls import Size, every_call, listed_blocks

GOALS = {FORWARD: ">= 480", BACKWARD: ">= 350"}  # TFLOP/s
AIM = 8192  # tokens from which they hold, at a width of 128
CAUSAL = [Shape(max(1, 16384 // t), t, 16, 128) for t in (AIM, 2 * AIM, 4 * AIM)]
CAUSAL += [Shape(2, AIM, 32, 64), Shape(2, AIM, 8, 256)]  # as many numbers, in narrower and wider heads
WINDOWS = ((1024, 0), (4096, 0), (256, 0), (1024, 4), (128, 0), (16384, 0))  # tokens, and first tokens kept visible


def attention(name: str, shape: Shape, layout: BlockLayout | None = None, **options: Any) -> Case:
    """A call over whole sequences, with a layout or options of the function."""

    def other(device: torch.device) -> Arrays:
        return {"layout": layout.to(device) if layout else None}

    return Case.whole(name, shape, partial(softmax_attention, **options), other)


@piece("cuda", "correctness_large")
def many_numbers(bench: Bench) -> Iterator[Checked]:
    """More than 2^31, of a window and a layout too, and of a cache."""
    reach, block = bench.pick((192, 64), (32, 16))

    def listed(q: Tensor, k: Tensor, v: Tensor, backend: str) -> Tensor:
        visible = listed_blocks(-(-k.shape[1] // block), reach // block).to(k.device)
        return softmax_attention(q, k, v, layout=BlockLayout.from_blocks(visible, block), backend=backend)

    length, window = bench.pick(140_000, 140), partial(softmax_attention, window=reach)
    yield from large(bench, "softmax", "causal", softmax_attention, length)
    yield from large(bench, "softmax", "window", window, KEEP + reach)
    yield from large(bench, "softmax", "layout", listed, KEEP + reach + length % block)  # begins where a block does

    def last(x: dict[str, Any]) -> dict[str, Any]:
        return {name: array if array is None else array[-1:] for name, array in x.items()}

    call, size = next(c for c in every_call() if c.family == "softmax" and is_step(c)), Size(128, 66_000, 33, 8)
    cache = Checked(call, bench.pick(size, Size(16, 20, 3, 2)), cut=last, part=last)
    yield from in_halves(bench, [cache])


def step(name: str, shape: Shape) -> Case:
    """One step over a full cache."""
    batch, capacity, heads, width = shape[:4]
    cache = batch, capacity, shape.key_heads, width

    def call(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, backend: str) -> Tensor:
        return softmax_attention_step(q, k, v, lengths, backend=backend)[:, None]

    def other(device: torch.device) -> Arrays:
        return {"lengths": torch.full((batch,), capacity, device=device)}

    return Case(name, shape, call, {"q": (batch, heads, width), "k": cache, "v": cache}, other)


def flexible(bench: Bench, shape: Shape | None = None, window: int | None = None) -> Forms:
    """FlexAttention over the same pairs, or as a step over a cache if there is no shape."""
    mask = partial(causal_mask, shape.length, bench.device, window) if shape else lambda: None
    return flex_peer(bench, mask)


def exact(bench: Bench, name: str, shape: Shape, goals: Goals = NO_GOALS, *ratios: Ratio, flex: bool = True) -> Timed:
    """Exact attention in all implementations: rates, memory, the lead over PyTorch's flash kernel."""
    lead = Ratio("over sdpa flash", "sdpa flash", each_way(">= 1"))

    def peers() -> Forms:
        return sdpa_peers(bench) | (flexible(bench, shape) if flex else {})

    rates = timed.rates(bench, shape, goals)
    return Timed(attention(name, shape), peers, metrics=rates, ratios=(lead, *ratios), always=name == "dense")


@piece("cuda", "softmax", row="causal", shapes=CAUSAL, goals=GOALS)
@piece("first", "flash-8k", row="causal", shapes=CAUSAL[:1], goals=GOALS, flex=False)
@piece("cuda", "few_heads_exact", row="few heads", shapes=[Shape(1, 64 * 1024, heads, 128) for heads in (8, 1, 4, 16)])
def dense(bench: Bench, row: str, shapes: list[Shape], goals: Goals = NO_GOALS, flex: bool = True) -> Iterator[Timed]:
    """Long rows, and one row of few heads over a long context; FlexAttention is compiled for long."""
    for shape in bench.pick(shapes, [Shape(1, 33, 2, 16)]):
        yield exact(bench, row, shape, goals if shape.width == 128 else NO_GOALS, flex=flex)


@piece("cuda", "gqa")
def gqa(bench: Bench) -> Iterator[Timed]:
    """Query heads that share key heads: the time against as many key heads as query heads."""
    full, counts = bench.pick((Shape(2, 8192, 32, 128, 32), (8, 4, 1)), (Shape(1, 20, 2, 16, 2), (1,)))
    over = Ratio("time over MHA", "ours", each_way("<= 1.1"), row=("gqa", full), share=1.0)
    yield exact(bench, "gqa", full)
    yield from (exact(bench, "gqa", full._replace(groups=groups), NO_GOALS, over) for groups in counts)


def _part(bench: Bench, case: Case, density: float, peers: Callable[[], Forms], goals: Goals = NO_GOALS) -> Timed:
    """Some of the pairs: rates, the time over density x dense, the lead over FlexAttention and over dense SDPA."""
    row, metric = ("dense", case.shape), "over density x dense"
    ratios = (
        Ratio(metric, "ours", goals, row=row, share=density),
        Ratio(metric, "ours", of="flex", row=row, share=density),
        Ratio("over flex", "flex", each_way(">= 1.2")),
        Ratio("over dense sdpa", "sdpa", row=row),
    )
    metrics = *timed.rates(bench, case.shape, density=density), timed.constant("density", 100 * density, "%")
    return Timed(case, peers, metrics=metrics, ratios=ratios)


@piece("cuda", "windows")
@piece("first", "window-32k", sizes=WINDOWS[:1])
def windows(bench: Bench, sizes: tuple[tuple[int, int], ...] = WINDOWS) -> Iterator[Timed]:
    """Windows over a long context, against the share of the pairs that they hold, and FlexAttention."""
    shape, sizes = bench.pick((Shape(1, 32768, 16, 128), sizes), (Shape(1, 20, 2, 16), ((8, 0), (8, 2))))
    yield exact(bench, "dense", shape, flex=False)
    for window, first in sizes:
        density = 1 - max(shape.length - window, 0) * (shape.length - window + 1) / (shape.length * (shape.length + 1))
        name = f"window {window}" + (f", {first} sinks" if first else "")
        case = attention(name, shape, window=window, sink_tokens=first)
        yield _part(bench, case, density, dict if first else partial(flexible, bench, shape, window))


@piece("cuda", "sparse")
@piece("first", "bigbird-32k", only=("bigbird", 128))
def sparse(bench: Bench, only: tuple[str, int] | None = None) -> Iterator[Timed]:
    """Longformer- and BigBird-like layouts of about an eighth of the pairs, with the host's time to make them."""
    shape, blocks = bench.pick((Shape(1, 32768, 16, 128), (128, 64)), (Shape(1, 60, 2, 16), (16,)))
    yield exact(bench, "dense", shape, flex=False)
    for kind, block in product(("longformer", "bigbird"), blocks):
        if only not in (None, (kind, block)) and not bench.dry:
            continue
        heads, sizes = (shape.heads, (768, 512, 768)) if kind == "bigbird" else (1, (1536, 512, 0))
        near, first, random = (min(n, bench.pick(n, 16)) // block for n in sizes)
        visible = listed_blocks(-(-shape.length // block), near, first, random, heads).to(bench.device)
        name, layout = f"{kind}, blocks of {block}", BlockLayout.from_blocks(visible, block)

        def build(backend: str, visible: Tensor = visible, block: int = block) -> None:
            BlockLayout.from_blocks(visible, block)
            bench.wait()

        making = Case(f"{name}, layout", shape, build, {})
        yield Timed(making, directions=(FORWARD,), metrics=(timed.MILLISECONDS,), clock=HOST)
        peers = partial(flex_peer, bench, partial(layout.to_block_mask, shape.length))
        case, density = attention(name, shape, layout=layout), float(layout.density(shape.length))
        yield _part(bench, case, density, peers, each_way("<= 1.15"))


@piece("cuda", "decode", contexts=[1024 << i for i in range(10)], batches=(8, 32))
@piece("first", "decode", contexts=[32_768, 131_072], batches=())
def steps(bench: Bench, contexts: list[int], batches: tuple[int, ...]) -> Iterator[Timed]:
    """Steps over contexts, then batches, with eight key heads."""
    shapes = [Shape(1, t, 32, 128, 8) for t in contexts] + [Shape(b, 8192, 32, 128, 8) for b in batches]
    for shape in bench.pick(shapes, [Shape(1, 40, 4, 16, 2)]):
        nbytes = 2.0 * shape.batch * shape.length * shape.key_heads * shape.width * bench.dtype.itemsize
        goals = {FORWARD: ">= 80"} if shape.length >= 32768 else NO_GOALS
        moved = timed.of_memory(bench, {FORWARD: nbytes}, goals)
        yield from rows.of_step(step("softmax step", shape), lambda: sdpa_peers(bench) | flexible(bench), moved)


@piece("cuda", "overhead")
def overhead(bench: Bench) -> Iterator[Timed]:
    """Eager calls on small arrays."""
    whole, one = partial(attention, "softmax"), partial(step, "softmax step")
    yield from rows.of_host(bench, lambda: {"sdpa": sdpa()}, whole, one)


@piece("cpu", "sparse")
def on_a_cpu(bench: Bench) -> Iterator[Timed]:
    """Three patterns of at most 16 % of the pairs against dense attention: target 0.6 / density."""
    shape, few = bench.pick(Shape(1, 8192, 8, 64), Shape(1, 0, 8, 64), Shape(1, 2048, 8, 64)), (2, 1, 1, 1)
    near, first, window, random = bench.pick((7, 2, 3, 3), few, few)
    patterns = {"window 256": (5,), "longformer": (near, 1), "bigbird": (window, first, random, shape.heads)}
    for name, listed in patterns.items():
        layout = BlockLayout.from_blocks(listed_blocks(shape.length // 64, *listed), 64)
        how: dict[str, Any] = {"layout": layout}
        peers = partial(flex_peer, bench, layout.to_block_mask)
        if name == "window 256":
            peers, how = partial(flexible, bench, shape, 256), {"window": 256}
        density = float(layout.density(shape.length))
        metrics = timed.MILLISECONDS, timed.constant("pairs in listed blocks", 100 * density, "%")
        ratio = Ratio("over dense", "sdpa, dense", {BOTH: f">= {0.6 / density:.2f}"})
        beside = lambda peers=peers: {"sdpa, dense": sdpa()} | peers()  # noqa: E731
        yield Timed(attention(name, shape, **how), beside, (BOTH, FORWARD), metrics, (ratio,))
