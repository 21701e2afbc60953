"""Checks of softmax attention against its reference, for zoo_kernels.bench."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from zoo_kernels.bench.bench import Bench
from zoo_kernels.bench.check import LENGTHS, Arrays, Check, in_halves, rows_of
from zoo_kernels.bench.inputs import documents_of, normal
from zoo_kernels.bench.patterns import bigbird_blocks, longformer_blocks, window_blocks
from zoo_kernels.bench.record import Shape
from zoo_kernels.bench.registry import piece
from zoo_kernels.layout import BlockLayout
from zoo_kernels.softmax.api import softmax_attention, softmax_attention_step

PAIRS = ((1, 239), (64, 1000), (113, 203), (108, 256), (127, 513))  # queries, and more keys
PACKED = (1, 7, 64, 9, 2000)  # lengths of documents
KEEP = 64  # last tokens, which are compared where arrays are large


def banded(window: int | None, first: int = 0) -> dict[str, Any]:
    """Options of a window beside which the first tokens of each document stay visible."""
    return {"window": window, "sinks": first}


def _layout(pattern: str, block: int, shape: Shape, device: torch.device) -> BlockLayout:
    blocks = -(-shape.length // block)
    visible = (
        longformer_blocks(blocks, 2, 1) if pattern == "longformer" else bigbird_blocks(blocks, shape.heads, 1, 1, 1)
    )
    return BlockLayout.from_blocks(visible.to(device), block)


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
    queries, value = queries or length, value or width

    def draw(device: torch.device, dtype: torch.dtype) -> Arrays:
        sizes = {
            "q": (queries, heads, width),
            "k": (length, shape.key_heads, width),
            "v": (length, shape.key_heads, value),
        }
        sizes["to output"] = (queries, heads, value)
        x = {n: normal(device, dtype, batch, *size, strided=strided) for n, size in sizes.items()}
        x["to lse"] = normal(device, torch.float32, batch, queries, heads)
        if logits:
            x["sink_logits"] = normal(device, torch.float32, heads)
        if bias:
            x["block_bias"] = normal(device, torch.float32, 1, heads, *2 * (-(-length // block),))
        return x

    def call(x: Arrays, backend: str) -> Arrays:
        device = x["q"].device
        how = options | {"documents": documents_of(documents, batch, length, device)}
        how |= {name: x[name] for name in ("sink_logits", "block_bias") if name in x}
        how |= {"layout": _layout(layout, block, shape, device)} if layout else {}
        o, lse = softmax_attention(x["q"], x["k"], x["v"], return_lse=True, backend=backend, **how)
        return {"output": o, "lse": lse}

    return Check(f"softmax {name}", shape, draw, call)


@piece("cuda", "correctness_softmax")
def whole(bench: Bench) -> Iterator[Check]:
    """Forward and backward, the plainest first, and that a repeat gives the same bits; dry: one of each kind."""
    yield from in_halves(bench, _whole_cases(bench))
    heads, length, width = bench.pick((8, 3000, 128), (2, 20, 16))
    for groups in (heads // 2, 1):
        shape = Shape(bench.pick(2, 1), length, heads, width, groups)
        yield replace(_whole(f"repeats G{groups}", shape), repeats=20, dtype=bench.halves[0])


def _whole_cases(bench: Bench) -> Iterator[Check]:
    base, width, heads, block = bench.pick((129, 64, 4, 64), (35, 16, 2, 16))

    def at(name: str, length: int = base, width: int = width, groups: int = heads, **rest: Any) -> Check:
        queries = rest.get("queries", length)
        if queries != length:
            name += f" of {queries}"
        return _whole(name, Shape(rows_of(bench, queries), length, heads, width, groups), **{"block": block, **rest})

    yield from (at("causal", length) for length in bench.pick(LENGTHS, (base,)))
    yield from (at("tail", keys, queries=queries) for queries, keys in bench.pick(PAIRS, ((5, 35),)))
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
    shape = bench.pick(Shape(1, 140_000, 128, 128), Shape(1, 140, 2, 16))
    reach, block = bench.pick((192, 64), (32, 16))
    span = KEEP + reach
    yield from in_halves(
        bench,
        [
            _large("softmax", shape, shape.length),
            _large("softmax, window", shape, span, window=reach),
            # so that the span begins where a block does
            _large("softmax, layout", shape, span + shape.length % block, near=reach // block, block=block),
        ],
    )


def _large(name: str, shape: Shape, span: int, near: int = 0, block: int = 64, **options: Any) -> Check:
    """The last KEEP outputs and gradients, which depend on the last ``span`` keys; ``near``: blocks that one reads."""

    def draw(device: torch.device, dtype: torch.dtype) -> Arrays:
        return {name: normal(device, dtype, *shape[:4]) for name in ("q", "k", "v", "to output")}

    def call(x: Arrays, backend: str) -> Arrays:
        how = dict(options)
        if near:
            blocks = window_blocks(-(-x["k"].shape[1] // block), near)
            how["layout"] = BlockLayout.from_blocks(blocks.to(x["k"].device), block)
        return {"output": softmax_attention(x["q"], x["k"], x["v"], backend=backend, **how)}

    def cut(x: Arrays) -> Arrays:
        return {n: array[:, -(span if n in ("k", "v") else KEEP) :, -1:] for n, array in x.items()}

    def part(x: Arrays) -> Arrays:
        return {n: array[:, -KEEP:, -1:] for n, array in x.items()}

    return Check(f"large {name}", shape, draw, call, cut, part)


def _step(
    name: str,
    shape: Shape,
    *,
    logits: bool = False,
    ring: bool = False,
    graph: bool = False,
    last: bool = False,
    **options: Any,
) -> Check:
    """One step over a cache of rows of different lengths, of which ``last`` compares the last alone."""
    batch, capacity, heads, width = shape[:4]

    def draw(device: torch.device, dtype: torch.dtype) -> Arrays:
        x = {"q": normal(device, dtype, batch, heads, width)}
        size = (batch, capacity, shape.key_heads, width)
        x |= {n: torch.randn(size, device=device, dtype=dtype) for n in ("k", "v")}
        row = torch.arange(batch, device=device)
        x["lengths"] = capacity * row // (batch - 1)  # the first row has no key yet
        if ring:
            x["lengths"] += row * (capacity // 2)  # the last rows have gone round
        return x | ({"sink_logits": normal(device, torch.float32, heads)} if logits else {})

    def call(x: Arrays, backend: str) -> Arrays:
        how = options | {"ring": ring, "sink_logits": x.get("sink_logits"), "backend": backend}
        return {"output": softmax_attention_step(x["q"], x["k"], x["v"], x["lengths"], **how)[:, None]}

    def rows(x: Arrays) -> Arrays:
        return {n: array[-1:] for n, array in x.items()} if last else x

    return Check(f"step softmax {name}", shape, draw, call, rows, rows, graph)


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
