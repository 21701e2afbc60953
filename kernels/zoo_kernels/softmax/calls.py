"""Calls that between them launch every Triton kernel of softmax attention with every flag, for compiling them ahead."""

from __future__ import annotations

from typing import Any

import torch

from zoo_kernels.layout import BlockLayout
from zoo_kernels.softmax.api import softmax_attention, softmax_attention_step
from zoo_kernels.tools.calls import (
    Call,
    Inputs,
    Outputs,
    Size,
    differentiated,
    documents_of,
    followed,
    normal,
    of_heads,
    of_one_head,
)


def _whole(
    name: str,
    *,
    share: int = 1,
    keys_before: int = 0,
    documents: bool = False,
    bias: bool = False,
    main: bool = False,
    **options: Any,
) -> Call:
    """``share``: query heads per key head; ``keys_before``: keys before the first query."""

    def inputs(size: Size) -> Inputs:
        batch, heads, width, keys = size.batch, size.heads, size.width, size.length + keys_before
        made: Inputs = {"q": normal(size, batch, size.length, heads, width, seed=0)}
        made |= {x: normal(size, batch, keys, heads // share, width, seed=seed) for seed, x in ((1, "k"), (2, "v"))}
        made["documents"] = documents_of(size._replace(length=keys)) if documents else None
        return made

    def run(given: Inputs, backend: str) -> Outputs:
        names = ("q", "k", "v")
        given = followed(given, names)
        o, lse = softmax_attention(**given, return_lse=True, backend=backend, **options)
        return differentiated(given, names, {"output": o, "lse": lse})

    return Call(name, inputs, run, main)


def _layout(size: Size, block: int) -> BlockLayout:
    """Each block of queries reads the first block, the one before itself and itself, the last two by masks of bits."""
    rows = -(-size.length // block)
    query = torch.arange(rows, device=size.device)
    pairs = torch.stack([query * 0, query - 1, query], 1).reshape(-1)
    masks = torch.stack([query * 0 - 1, query * 0, query * 0], 1).reshape(-1)
    i, words = torch.arange(block), -(-block // 32)
    seen = torch.nn.functional.pad((i[:, None] + i) % 3 > 0, (0, words * 32 - block)).view(1, block, words, 32)
    bits = (seen.long() << torch.arange(32)).sum(-1).to(torch.int32).to(size.device)
    none = pairs * 0
    return BlockLayout.from_pairs(block, rows, none, none, query.repeat_interleave(3), pairs, masks, bits, longest=3)


def _listed(name: str, block: int, *, biased: bool = False, share: int = 1, main: bool = False) -> Call:
    plain = _whole(name, share=share)

    def inputs(size: Size) -> Inputs:
        rows = -(-size.length // block)
        bias = None
        if biased:
            bias = torch.randn(1, size.heads, rows, rows, generator=torch.Generator().manual_seed(5)).to(size.device)
        return plain.inputs(size) | {"layout": _layout(size, block), "block_bias": bias}

    def run(given: Inputs, backend: str) -> Outputs:
        names = ("q", "k", "v", *(["block_bias"] if biased else []))
        given = followed(given, names)
        o, lse = softmax_attention(**given, return_lse=True, backend=backend)
        return differentiated(given, names, {"output": o, "lse": lse})

    return Call(name, inputs, run, main, 300)


def _step(name: str, *, share: int = 1, ring: bool = False, main: bool = False, **options: Any) -> Call:
    """``ring``: the cache is written as a ring; here it is not full, so the numbers are the same."""

    def inputs(size: Size) -> Inputs:
        batch, heads, width, keys = size.batch, size.heads, size.width, size.length + 64
        made: Inputs = {"q": normal(size, batch, heads, width, seed=0)}
        made |= {x: normal(size, batch, keys, heads // share, width, seed=1) for x in ("k_cache", "v_cache")}
        made["lengths"] = (torch.arange(batch) % size.length + 1).flip(0).to(size.device)
        return made

    def run(given: Inputs, backend: str) -> Outputs:
        return {"output": softmax_attention_step(**given, ring=ring, backend=backend, **options)}

    return Call(name, inputs, run, main)


CALLS = (
    _whole("causal", main=True),
    _whole("documents, window, sinks", documents=True, window=40, sink_tokens=4, share=2, keys_before=7, main=True),
    _listed("layout of 128, bias", 128, biased=True, share=2, main=True),
    _listed("layout of 64, bias", 64, biased=True, share=2),
    _listed("layout of 128", 128),
    _listed("layout of 64", 64),
    _step("step", main=True),
    _step("step, grouped, window, sinks", share=2, window=40, sink_tokens=4, main=True),
    _step("step, ring", share=2, window=40, sink_tokens=4, ring=True),
    _step("step, grouped", share=4),
    of_heads(_step("step, grouped", share=32), 32),
    of_heads(_step("step, grouped", share=96), 96),
    _whole("window", window=40),
    _whole("documents", documents=True),
    _whole("window, sinks", window=40, sink_tokens=4),
    of_one_head(_whole("causal", main=True)),
    of_one_head(_listed("layout of 64, bias", 64, biased=True, main=True)),
    of_one_head(_step("step", main=True)),
)
