"""Checks of softmax attention against its reference, for zoo_kernels.bench."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from zoo_kernels.bench.bench import Bench
from zoo_kernels.bench.check import KEEP, LENGTHS, PACKED, Arrays, Check, in_halves, last_of, rows_of
from zoo_kernels.bench.inputs import documents_of
from zoo_kernels.bench.patterns import bigbird_blocks, longformer_blocks, window_blocks
from zoo_kernels.bench.record import Shape
from zoo_kernels.bench.registry import piece
from zoo_kernels.layout import BlockLayout
from zoo_kernels.softmax.api import softmax_attention, softmax_attention_step

PAIRS = ((1, 239), (64, 1000), (113, 203), (108, 256), (127, 513))  # queries, and more keys


def banded(window: int | None, first: int = 0) -> dict[str, Any]:
    """Options of a window beside which the first tokens of each document stay visible."""
    return {"window": window, "sink_tokens": first}


def _whole(
    name: str,
    shape: Shape,
    *,
    queries: int = 0,
    value: int = 0,
    documents: tuple[int, ...] = (),
    layout: str = "",
    block: int = 64,
    bias: bool = False,
    logits: bool = False,
    strided: bool = False,
    **options: Any,
) -> Check:
    """A call over whole sequences, with the log-sum-exp and all gradients.

    ``queries``: fewer than keys; ``value``: width of the values; ``layout``: a pattern of blocks; ``logits``: a sink of
    weight per head.
    """
    batch, length, heads, width = shape[:4]
    queries, value, blocks = queries or length, value or width, -(-length // block)
    of_queries, of_keys = (batch, queries, heads), (batch, length, shape.key_heads)

    def other(device: torch.device) -> Arrays:
        made = {"documents": documents_of(documents, batch, length, device)}
        if not layout:
            return made
        visible = longformer_blocks(blocks, 2, 1) if layout == "longformer" else bigbird_blocks(blocks, heads, 1, 1, 1)
        return made | {"layout": BlockLayout.from_blocks(visible.to(device), block)}

    wide: dict[str, tuple[int, ...]] = {"to lse": of_queries}
    wide |= {"sink_logits": (heads,)} if logits else {}
    wide |= {"block_bias": (1, heads, blocks, blocks)} if bias else {}
    sizes = {
        "q": (*of_queries, width),
        "k": (*of_keys, width),
        "v": (*of_keys, value),
        "to output": (*of_queries, value),
    }
    call = partial(softmax_attention, return_lse=True, **options)
    return Check(f"softmax {name}", shape, call, sizes, wide, other, ("output", "lse"), strided=strided)


@piece("cuda", "correctness_softmax")
def whole(bench: Bench) -> Iterator[Check]:
    """Forward and backward, the plainest first, and that a repeat gives the same bits; dry: one of each kind."""
    yield from in_halves(bench, _whole_cases(bench))
    shape = bench.pick(Shape(2, 3000, 8, 128), Shape(1, 20, 2, 16))
    groups = shape.heads // 2, 1
    yield from in_halves(bench, [_whole(f"repeats G{g}", shape._replace(groups=g)) for g in groups], repeats=20)


def _whole_cases(bench: Bench) -> Iterator[Check]:
    base, width, heads, block = bench.pick((129, 64, 4, 64), (35, 16, 2, 16))

    def at(name: str, length: int = base, width: int = width, groups: int = heads, **rest: Any) -> Check:
        rows = rows_of(bench, rest.get("queries", length))
        return _whole(name, Shape(rows, length, heads, width, groups), **{"block": block, **rest})

    yield from (at("causal", length) for length in bench.pick(LENGTHS, (base,)))
    yield from (at(f"tail of {q}", keys, queries=q) for q, keys in bench.pick(PAIRS, ((5, 35),)))
    yield from (at(f"gqa{groups}", groups=groups) for groups in bench.pick((1, 2), (1,)))
    yield from (at(f"window{w}", window=w) for w in bench.pick((0, 1, 17, 64, 100), (0, 9)))
    yield at("window,sinks", **banded(9, 4))
    yield at("sink_logits", logits=True)
    yield at("documents", documents=PACKED)
    yield at("documents,window,sinks", documents=PACKED, logits=True, **banded(9, 2))
    yield at("strided", strided=True)
    yield at("D,E", width=width - 4, value=width // 2 + 8)
    listed = bench.pick(300, 60)  # blocks enough for some to be left out
    yield from (at(layout, listed, layout=layout) for layout in ("longformer", "bigbird"))
    yield at("bigbird,gqa", listed, layout="bigbird", groups=heads // 2)
    yield at("bigbird,bias", listed, layout="bigbird", bias=True)
    if bench.dry:
        return
    for wide in (128, 256):
        yield from (at("causal", length, wide) for length in (base, 1000))
        yield at("gqa,window", 513, wide, groups=1, window=100)
    yield at("window,documents", 1000, documents=PACKED, window=100)
    for size in (64, 128):
        for layout in ("longformer", "bigbird"):
            yield at(f"{layout}{size}", 1000, 128, layout=layout, block=size)


@piece("cuda", "correctness_large")
def large(bench: Bench) -> Iterator[Check]:
    """More than 2^31 numbers, whose last ones offsets of 32 bits would not reach: the last tokens of the last head."""
    shape, reach, block = bench.pick((Shape(1, 140_000, 128, 128), 192, 64), (Shape(1, 140, 2, 16), 32, 16))
    span = KEEP + reach
    near = partial(_of_near_blocks, near=reach // block, block=block)
    calls = {
        "softmax": (softmax_attention, shape.length),
        "softmax, window": (partial(softmax_attention, window=reach), span),
        "softmax, layout": (near, span + shape.length % block),  # so that the span begins where a block does
    }
    yield from in_halves(bench, [_large(name, shape, *how) for name, how in calls.items()])


def _of_near_blocks(q: Tensor, k: Tensor, v: Tensor, near: int, block: int, backend: str) -> Tensor:
    blocks = window_blocks(-(-k.shape[1] // block), near).to(k.device)
    output: Tensor = softmax_attention(q, k, v, layout=BlockLayout.from_blocks(blocks, block), backend=backend)
    return output


def _large(name: str, shape: Shape, call: Any, span: int) -> Check:
    """The last outputs and gradients, which depend on the last ``span`` keys."""

    def cut(x: Arrays) -> Arrays:
        return {n: array[:, -(span if n in ("k", "v") else KEEP) :, -1:] for n, array in x.items()}

    sizes = dict.fromkeys(("q", "k", "v", "to output"), shape[:4])
    return Check(f"large {name}", shape, call, sizes, cut=cut, part=last_of)


def _step(
    name: str,
    shape: Shape,
    *,
    logits: bool = False,
    ring: bool = False,
    graph: bool = False,
    last: bool = False,
    **rest: Any,
) -> Check:
    """One step over a cache of rows of different lengths, of which ``last`` compares the last alone."""
    batch, capacity, heads, width = shape[:4]
    cache = (batch, capacity, shape.key_heads, width)

    def other(device: torch.device) -> Arrays:
        row = torch.arange(batch, device=device)
        lengths = capacity * row // (batch - 1)  # the first row has no key yet
        return {"lengths": lengths + row * (capacity // 2) if ring else lengths}  # the last rows have gone round

    def call(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, **how: Any) -> Tensor:
        output: Tensor = softmax_attention_step(q, k, v, lengths, ring=ring, **how, **rest)
        return output[:, None]

    def rows(x: Arrays) -> Arrays:
        return {n: array[-1:] for n, array in x.items()} if last else x

    return Check(
        f"step softmax {name}",
        shape,
        call,
        sizes={"q": (batch, heads, width), "k": cache, "v": cache},
        wide={"sink_logits": (heads,)} if logits else {},
        other=other,
        cut=rows,
        part=rows,
        graph=graph,
    )


@piece("cuda", "correctness_decode")
def steps(bench: Bench) -> Iterator[Check]:
    """A step over ragged batches, windows, sinks and rings."""
    yield from in_halves(bench, _step_cases(bench, bench.pick(Shape(3, 300, 8, 128, 2), Shape(3, 40, 4, 16, 2))))


def _step_cases(bench: Bench, base: Shape) -> Iterator[Check]:
    if not bench.dry:
        yield from (_step("gqa", base._replace(length=n)) for n in (1, 17, 64, 129, 1000, 4097, 65_537))
        yield from (_step("gqa", base._replace(width=n)) for n in (64, 256))
        yield _step("gqa 64:8", Shape(3, 20_000, 64, 128, 8))
        yield _step("large", Shape(33, 66_000, 8, 128, 8), last=True)  # more than 2^31 numbers
    yield _step("gqa", base)
    yield from (_step(name, base._replace(groups=groups)) for name, groups in (("mha", base.heads), ("mqa", 1)))
    yield _step("window", base, **banded(9))
    yield _step("window,sinks", base, **banded(9, 4))
    yield _step("sink_logits", base, logits=True)
    yield _step("ring", base, ring=True, **banded(base.length))
    yield _step("ring,sinks", base, ring=True, **banded(base.length - 7, 4))
    yield _step("gqa, CUDA graph", base, graph=True)
