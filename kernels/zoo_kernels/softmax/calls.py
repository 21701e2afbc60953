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
    listed_blocks,
    normal,
    of_heads,
    of_one_head,
    strided,
)


def _whole(
    name: str,
    *,
    share: int = 1,
    keys_before: int = 0,
    documents: bool = False,
    logits: bool = False,
    thin: bool = False,
    main: bool = False,
    **options: Any,
) -> Call:
    """A call over whole sequences.

    Args:
        name: name of the call.
        main: whether it launches the kernel that the table of tiles is about.
        share: query heads per key head.
        keys_before: keys before the first query.
        documents: whether the call has documents.
        logits: whether the call has sink logits, with gradients.
        thin: the values are less wide than the keys.
        options: of the function.
    """

    def inputs(size: Size) -> Inputs:
        batch, heads, width, keys = size.batch, size.heads, size.width, size.length + keys_before
        made: Inputs = {"q": normal(size, batch, size.length, heads, width, seed=0)}
        made |= {x: normal(size, batch, keys, heads // share, width, seed=seed) for seed, x in ((1, "k"), (2, "v"))}
        if thin:
            made["v"] = made["v"][..., : width // 2 + 8]
        made["documents"] = documents_of(size._replace(length=keys)) if documents else None
        made["sink_logits"] = normal(size, heads, seed=6).float() if logits else None
        return made

    def run(given: Inputs, backend: str) -> Outputs:
        names = ("q", "k", "v", "sink_logits")
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


def _listed(
    name: str,
    block: int,
    *,
    biased: bool = False,
    share: int = 1,
    main: bool = False,
    lists: tuple[int, int, int] | None = None,
) -> Call:
    """``lists``: arguments of :func:`listed_blocks`, by head, in place of three blocks and masks of bits for all."""
    plain = _whole(name, share=share)

    def inputs(size: Size) -> Inputs:
        rows = -(-size.length // block)
        bias = None
        if biased:
            bias = torch.randn(1, size.heads, rows, rows, generator=torch.Generator().manual_seed(5)).to(size.device)
        layout = _layout(size, block)
        if lists:
            layout = BlockLayout.from_blocks(listed_blocks(rows, *lists, size.heads).to(size.device), block)
        return plain.inputs(size) | {"layout": layout, "block_bias": bias}

    def run(given: Inputs, backend: str) -> Outputs:
        names = ("q", "k", "v", *(["block_bias"] if biased else []))
        given = followed(given, names)
        o, lse = softmax_attention(**given, return_lse=True, backend=backend)
        return differentiated(given, names, {"output": o, "lse": lse})

    return Call(name, inputs, run, main, 300)


def _step(
    name: str, *, share: int = 1, ring: bool = False, logits: bool = False, main: bool = False, **options: Any
) -> Call:
    """The first row has no key yet, the last one a full cache; ``ring``: later rows have gone round it."""

    def inputs(size: Size) -> Inputs:
        batch, heads, width, keys = size.batch, size.heads, size.width, size.length + 64
        made: Inputs = {"q": normal(size, batch, heads, width, seed=0)}
        made |= {x: normal(size, batch, keys, heads // share, width, seed=1) for x in ("k_cache", "v_cache")}
        row = torch.arange(batch, device=size.device)
        made["lengths"] = keys * row // (batch - 1) if batch > 1 else row + keys
        if ring:
            made["lengths"] += row * (keys // 2)
        made["sink_logits"] = normal(size, heads, seed=6).float() if logits else None
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

HARDER = (
    *(_whole(f"window of {n}", window=n) for n in (0, 1, 17, 64)),
    *(_whole(f"tail, {n} keys before", keys_before=n) for n in (7, 90, 400)),
    *(_whole(f"{n} query heads per key head", share=n) for n in (2, 4)),
    _whole("grouped, window", share=4, window=100),
    _whole("sink logits", logits=True),
    _whole("sink logits, documents, window, sinks", logits=True, documents=True, window=9, sink_tokens=2),
    _whole("thin values", thin=True),
    strided(_whole("causal")),
    *(_listed(f"longformer {block}", block, lists=(2, 1, 0)) for block in (64, 128)),
    *(_listed(f"bigbird {block}", block, lists=(1, 1, 1), share=block // 64) for block in (64, 128)),
    _listed("bigbird, bias", 64, biased=True, lists=(1, 1, 1)),
    _step("step, sink logits", logits=True),
    _step("step, grouped, window", share=4, window=9),
    _step("step, full ring", share=4, window=64, ring=True),
)
