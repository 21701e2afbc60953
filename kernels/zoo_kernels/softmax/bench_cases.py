"""What zoo_kernels.bench checks and times of softmax attention: whole sequences, layouts, and steps of decoding."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor

from zoo_kernels.bench import timed
from zoo_kernels.bench.bench import Bench
from zoo_kernels.bench.case import PACKED, Arrays, Case, documents_of, listed_blocks
from zoo_kernels.bench.check import KEEP, LENGTHS, Check, in_halves, large, rows_of
from zoo_kernels.bench.clock import HOST, GraphClock, WallClock
from zoo_kernels.bench.peers import causal_mask, flex_peer, sdpa, sdpa_peers
from zoo_kernels.bench.record import BACKWARD, BOTH, FORWARD, Shape
from zoo_kernels.bench.registry import piece
from zoo_kernels.bench.timed import NO_GOALS, Forms, Goals, Ratio, Timed, each_way
from zoo_kernels.layout import BlockLayout
from zoo_kernels.softmax.api import softmax_attention, softmax_attention_step

GOALS = {FORWARD: ">= 480", BACKWARD: ">= 350"}  # TFLOP/s
AIM = 8192  # tokens from which they hold, at a width of 128
CAUSAL = [Shape(max(1, 16384 // t), t, 16, 128) for t in (AIM, 2 * AIM, 4 * AIM)]
CAUSAL += [Shape(2, AIM, 32, 64), Shape(2, AIM, 8, 256)]  # as many numbers, in narrower and wider heads
WINDOWS = ((1024, 0), (4096, 0), (256, 0), (1024, 4), (128, 0), (16384, 0))  # tokens, and first tokens kept visible


def attention(
    name: str,
    shape: Shape,
    *,
    queries: int = 0,
    value: int = 0,
    documents: tuple[int, ...] = (),
    strided: bool = False,
    lse: bool = False,
    layout: BlockLayout | None = None,
    wide: dict[str, tuple[int, ...]] | None = None,
    **options: Any,
) -> Case:
    """A call over whole sequences.

    Args:
        name: name of the case.
        shape: shape of the case.
        queries: number of the queries, if other than that of the keys.
        value: width of the values, if other than the keys'.
        documents: lengths of packed documents.
        strided: whether heads lie outside of tokens in memory.
        lse: with the log-sum-exp; else the output alone.
        layout: layout of the function.
        wide: sizes of further arrays in fp32, by name.
        options: options of the function.
    """
    batch, length, heads, width = shape[:4]
    queries, value, keys = queries or length, value or width, (batch, length, shape.key_heads)
    sizes = {"q": (batch, queries, heads, width), "k": (*keys, width), "v": (*keys, value)}
    sizes["to output"] = batch, queries, heads, value

    def other(device: torch.device) -> Arrays:
        listed = layout.to(device) if layout else None
        return {"documents": documents_of(documents, batch, length, device), "layout": listed}

    call = partial(softmax_attention, return_lse=lse, **options)
    wide = (wide or {}) | ({"to lse": (batch, queries, heads)} if lse else {})
    return Case(name, shape, call, sizes, wide, other, ("output", "lse")[: 1 + lse], strided=strided)


@piece("cuda", "correctness_softmax")
def whole(bench: Bench) -> Iterator[Check]:
    """Forward and backward, the plainest first, and that a repeat gives the same bits; dry: one of each kind."""
    base, size, heads, side = bench.pick((129, 64, 4, 64), (35, 16, 2, 16))

    def at(name: str, length: int = base, width: int = size, groups: int = heads, **rest: Any) -> Check:
        shape = Shape(rows_of(bench, rest.get("queries", length)), length, heads, width, groups)
        return Check(attention(f"softmax {name}", shape, lse=True, **rest))

    def blocks(name: str, length: int, width: int = size, block: int = side, **rest: Any) -> Check:
        count = -(-length // block)
        visible = listed_blocks(count, 2, 1) if name.startswith("longformer") else listed_blocks(count, 1, 1, 1, heads)
        return at(name, length, width, layout=BlockLayout.from_blocks(visible, block), **rest)

    def cases() -> Iterator[Check]:
        logits = {"sink_logits": (heads,)}
        yield from (at("causal", length) for length in bench.pick(LENGTHS, (base,)))
        tails = bench.pick(((1, 239), (64, 1000), (113, 203), (108, 256), (127, 513)), ((5, 35),))  # queries, and keys
        yield from (at(f"tail of {queries}", keys, queries=queries) for queries, keys in tails)
        yield from (at(f"gqa{groups}", groups=groups) for groups in bench.pick((1, 2), (1,)))
        yield from (at(f"window{w}", window=w) for w in bench.pick((0, 1, 17, 64, 100), (0, 9)))
        yield at("window,sinks", window=9, sink_tokens=4)
        yield at("sink_logits", wide=logits)
        yield at("documents", documents=PACKED)
        yield at("documents,window,sinks", documents=PACKED, wide=logits, window=9, sink_tokens=2)
        yield at("strided", strided=True)
        yield at("D,E", width=size - 4, value=size // 2 + 8)
        listed = bench.pick(300, 60)  # blocks enough for some to be left out
        count = -(-listed // side)
        yield from (blocks(name, listed) for name in ("longformer", "bigbird"))
        yield blocks("bigbird,gqa", listed, groups=heads // 2)
        yield blocks("bigbird,bias", listed, wide={"block_bias": (1, heads, count, count)})
        if not bench.dry:
            for wide in (128, 256):
                yield from (at("causal", length, wide) for length in (base, 1000))
                yield at("gqa,window", 513, wide, groups=1, window=100)
            yield at("window,documents", 1000, documents=PACKED, window=100)
            for block, name in product((64, 128), ("longformer", "bigbird")):
                yield blocks(f"{name}{block}", 1000, 128, block)

    yield from in_halves(bench, cases())
    shape = bench.pick(Shape(2, 3000, 8, 128), Shape(1, 20, 2, 16))
    shapes = [shape._replace(groups=groups) for groups in (shape.heads // 2, 1)]
    repeats = [Check(attention(f"softmax repeats G{each.groups}", each, lse=True)) for each in shapes]
    yield from in_halves(bench, repeats, repeats=20)


@piece("cuda", "correctness_large")
def many_numbers(bench: Bench) -> Iterator[Check]:
    """More than 2^31, of a window and a layout too."""
    shape, reach, block = bench.pick((Shape(1, 140_000, 128, 128), 192, 64), (Shape(1, 140, 2, 16), 32, 16))

    def call(q: Tensor, k: Tensor, v: Tensor, backend: str, **_: Any) -> Tensor:
        visible = listed_blocks(-(-k.shape[1] // block), reach // block).to(k.device)
        return softmax_attention(q, k, v, layout=BlockLayout.from_blocks(visible, block), backend=backend)

    plain, span = attention("large softmax", shape), KEEP + reach
    near = attention("large softmax, window", shape, window=reach)
    listed = Case("large softmax, layout", shape, call, plain.sizes)
    spans = ((plain, shape.length), (near, span), (listed, span + shape.length % block))  # begins where a block does
    yield from in_halves(bench, [large(case, k=keys, v=keys) for case, keys in spans])


def step(name: str, shape: Shape, ragged: bool = False, logits: bool = False, **options: Any) -> Case:
    """One step over a cache; the rows of a ragged one have different lengths, and those of a ring have gone round."""
    batch, capacity, heads, width = shape[:4]
    cache, wide = (batch, capacity, shape.key_heads, width), {"sink_logits": (heads,)} if logits else {}

    def other(device: torch.device) -> Arrays:
        row = torch.arange(batch, device=device)
        if not ragged:
            return {"lengths": 0 * row + capacity}
        lengths = capacity * row // (batch - 1)  # the first row has no key yet
        return {"lengths": lengths + row * (capacity // 2) if options.get("ring") else lengths}

    def call(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, **how: Any) -> Tensor:
        return softmax_attention_step(q, k, v, lengths, **how, **options)[:, None]

    return Case(name, shape, call, {"q": (batch, heads, width), "k": cache, "v": cache}, wide, other)


@piece("cuda", "correctness_decode")
def decoding(bench: Bench) -> Iterator[Check]:
    """A step over ragged batches, windows, sinks and rings."""
    base = bench.pick(Shape(3, 300, 8, 128, 2), Shape(3, 40, 4, 16, 2))

    def at(name: str, shape: Shape = base, **options: Any) -> Check:
        return Check(step(f"step softmax {name}", shape, ragged=True, **options))

    checks = [at(name, base._replace(groups=count)) for name, count in (("gqa", 2), ("mha", base.heads), ("mqa", 1))]
    checks += [at("window", window=9), at("window,sinks", window=9, sink_tokens=4), at("sink_logits", logits=True)]
    checks += [at("ring", ring=True, window=base.length), replace(at("gqa, CUDA graph"), graph=True)]
    checks.append(at("ring,sinks", ring=True, window=base.length - 7, sink_tokens=4))
    if not bench.dry:
        shapes = [base._replace(length=n) for n in (1, 17, 64, 129, 1000, 4097, 65_537)]
        checks += [at("gqa", shape) for shape in (*shapes, *(base._replace(width=n) for n in (64, 256)))]
        checks.append(at("gqa 64:8", Shape(3, 20_000, 64, 128, 8)))
        last = lambda x: {n: array[-1:] for n, array in x.items()}  # noqa: E731
        checks.append(replace(at("large", Shape(33, 66_000, 8, 128, 8)), cut=last, part=last))  # more than 2^31 numbers
    yield from in_halves(bench, checks)


def flexible(bench: Bench, shape: Shape | None = None, window: int | None = None) -> Forms:
    """FlexAttention over the same pairs, or as a step over a cache if there is no shape."""
    mask = partial(causal_mask, shape.length, bench.device, window) if shape else lambda: None
    return flex_peer(bench, f"attention {shape}" if shape else "softmax step", mask)


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

        making, clock = Case(f"{name}, layout", shape, build, {}), WallClock(5, 1.0, 0.0)
        yield Timed(making, directions=(FORWARD,), metrics=(timed.MILLISECONDS,), clock=clock)
        peers = partial(flex_peer, bench, name, partial(layout.to_block_mask, shape.length))
        case, density = attention(name, shape, layout=layout), float(layout.density(shape.length))
        yield _part(bench, case, density, peers, each_way("<= 1.15"))


@piece("cuda", "decode", contexts=[1024 << i for i in range(10)], batches=(8, 32))
@piece("first", "decode", contexts=[32_768, 131_072], batches=())
def steps(bench: Bench, contexts: list[int], batches: tuple[int, ...]) -> Iterator[Timed]:
    """Steps over contexts, then batches, with eight key heads: the share of the bandwidth, and inside a CUDA graph."""
    shapes = [Shape(1, t, 32, 128, 8) for t in contexts] + [Shape(b, 8192, 32, 128, 8) for b in batches]
    for shape in bench.pick(shapes, [Shape(1, 40, 4, 16, 2)]):
        nbytes = 2.0 * shape.batch * shape.length * shape.key_heads * shape.width * bench.dtype.itemsize
        goals = {FORWARD: ">= 80"} if shape.length >= 32768 else NO_GOALS
        moved, told = timed.of_memory(bench, {FORWARD: nbytes}, goals), timed.microseconds("GPU time")

        yield Timed(step("softmax step", shape), lambda: sdpa_peers(bench) | flexible(bench), (FORWARD,), (moved,))
        case = step("softmax step, in a CUDA graph", shape)
        yield Timed(case, directions=(FORWARD,), metrics=(told,), clock=GraphClock())


@piece("cuda", "overhead")
def overhead(bench: Bench) -> Iterator[Timed]:
    """Host time of eager calls on arrays so small that the GPU does not matter."""
    shape, told = bench.pick(Shape(1, 64, 1, 64), Shape(1, 16, 2, 16)), timed.microseconds("per call")
    aimed = told._replace(goals={FORWARD: "<= 60"})
    yield Timed(attention("softmax", shape), lambda: {"sdpa": sdpa()}, (FORWARD, BOTH), (aimed,), clock=HOST)
    yield Timed(step("softmax step", shape), directions=(FORWARD,), metrics=(told,), clock=HOST)


@piece("cpu", "sparse")
def on_a_cpu(bench: Bench) -> Iterator[Timed]:
    """Three patterns of at most 16 % of the pairs against dense attention: target 0.6 / density."""
    shape, few = bench.pick(Shape(1, 8192, 8, 64), Shape(1, 0, 8, 64), Shape(1, 2048, 8, 64)), (2, 1, 1, 1)
    near, first, window, random = bench.pick((7, 2, 3, 3), few, few)
    patterns = {"window 256": (5,), "longformer": (near, 1), "bigbird": (window, first, random, shape.heads)}
    for name, listed in patterns.items():
        layout = BlockLayout.from_blocks(listed_blocks(shape.length // 64, *listed), 64)
        how: dict[str, Any] = {"layout": layout}
        peers = partial(flex_peer, bench, name, layout.to_block_mask)
        if name == "window 256":
            peers, how = partial(flexible, bench, shape, 256), {"window": 256}
        density = float(layout.density(shape.length))
        metrics = timed.MILLISECONDS, timed.constant("pairs in listed blocks", 100 * density, "%")
        ratio = Ratio("over dense", "sdpa, dense", {BOTH: f">= {0.6 / density:.2f}"})
        beside = lambda peers=peers: {"sdpa, dense": sdpa()} | peers()  # noqa: E731
        yield Timed(attention(name, shape, **how), beside, (BOTH, FORWARD), metrics, (ratio,))
