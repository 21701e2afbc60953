# mypy: ignore-errors
"""Exact attention in Triton, forward (after FlashAttention-2, Dao 2023, arXiv:2307.08691).

Flags of all three kernels: LAYOUT is the block size of a layout, or 0; UNIT divides all strides, and the strides come
divided by it, so that the compiler knows their alignment and not their values.
"""

import triton
import triton.language as tl

from zoo_kernels.softmax.triton.parts import (
    LN2,
    LOG2E,
    UNSPECIALIZED,
    bias_of,
    checked_place,
    dot,
    is_set,
    key_tiles,
    listed_place,
    listed_row,
    load_rows,
    may_read,
    readable_from,
    store_rows,
)


@triton.jit
def _forward_tile(
    accumulator,
    total,
    peak,
    q_tile,
    k,
    v,
    place,
    mask,
    bias,
    t,
    start_t,
    low_t,
    k_time,
    v_time,
    bits,
    scale2,
    Tk,
    sink_tokens,
    WIDTH: tl.constexpr,
    VALUE: tl.constexpr,
    WIDTH_BLOCK: tl.constexpr,
    VALUE_BLOCK: tl.constexpr,
    KEYS: tl.constexpr,
    SINKS: tl.constexpr,
    BOUND: tl.constexpr,
    LAYOUT: tl.constexpr,
    BIAS: tl.constexpr,
    CHECK: tl.constexpr,
):
    """One key tile of the forward pass: the running sum, its weight and the running maximum of the logits."""
    k_tile = load_rows(k, place, k_time, Tk, WIDTH, KEYS, WIDTH_BLOCK, CHECK)
    product = dot(q_tile, tl.trans(k_tile))
    if CHECK or BIAS:
        score = product * scale2
        if BIAS:
            score += bias
        if CHECK:
            j = (place + tl.arange(0, KEYS))[None, :]
            seen = may_read(t[:, None], j, start_t[:, None], low_t[:, None], sink_tokens, SINKS, BOUND)
            if LAYOUT:
                seen = seen & is_set(t[:, None], j, mask, bits, LAYOUT)
            score = tl.where(seen, score, float("-inf"))
        highest = tl.maximum(peak, tl.max(score, 1))
        base = tl.where(highest == float("-inf"), 0.0, highest)
        weight = tl.exp2(score - base[:, None])
    else:  # a multiplication and subtraction in one instruction
        highest = tl.maximum(peak, tl.max(product, 1) * scale2)
        base = highest
        weight = tl.exp2(product * scale2 - base[:, None])
    shrink = tl.exp2(peak - base)
    total = total * shrink + tl.sum(weight, 1)
    v_tile = load_rows(v, place, v_time, Tk, VALUE, KEYS, VALUE_BLOCK, CHECK)
    accumulator = dot(weight.to(v_tile.dtype), v_tile, accumulator * shrink[:, None])
    return accumulator, total, highest


@triton.jit(do_not_specialize=UNSPECIALIZED)
def forward_kernel(
    q,
    k,
    v,
    o,
    lse,
    starts,
    offsets,
    full,
    blocks,
    masks,
    bits,
    bias,
    q_batch: tl.int64,
    q_time: tl.int64,
    q_head: tl.int64,
    k_batch: tl.int64,
    k_time: tl.int64,
    k_head: tl.int64,
    v_batch: tl.int64,
    v_time: tl.int64,
    v_head: tl.int64,
    scale,
    offset: tl.int32,
    Tq: tl.int32,
    Tk: tl.int32,
    window: tl.int32,
    sink_tokens: tl.int32,
    rows: tl.int64,
    columns: tl.int64,
    list_batch: tl.int64,
    list_head: tl.int64,
    bias_batch: tl.int64,
    bias_head: tl.int64,
    H,
    R,
    WIDTH: tl.constexpr,
    VALUE: tl.constexpr,
    WIDTH_BLOCK: tl.constexpr,
    VALUE_BLOCK: tl.constexpr,
    UNIT: tl.constexpr,
    WINDOW: tl.constexpr,
    SINKS: tl.constexpr,
    DOCUMENTS: tl.constexpr,
    LAYOUT: tl.constexpr,
    BIAS: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
):
    """Computes output and natural log-sum-exp of one query tile of one head; tiles with most keys run first."""
    h, b = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    first = (tl.num_programs(0) - 1 - tl.program_id(0) + offset // QUERIES) * QUERIES
    q += b * (q_batch * UNIT) + h * (q_head * UNIT)
    k += b * (k_batch * UNIT) + (h // R) * (k_head * UNIT)
    v += b * (v_batch * UNIT) + (h // R) * (v_head * UNIT)
    if DOCUMENTS:
        starts += b * Tk
    t = first + tl.arange(0, QUERIES)
    start_t, low_t = readable_from(t, starts, Tk, window, WINDOW, DOCUMENTS)
    q_tile = load_rows(q, first - offset, q_time * UNIT, Tq, WIDTH, QUERIES, WIDTH_BLOCK, True)
    accumulator = tl.zeros((QUERIES, VALUE_BLOCK), tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    peak = tl.full((QUERIES,), float("-inf"), tl.float32)
    scale2 = scale * LOG2E
    if LAYOUT:
        row = first // LAYOUT
        begin, unchecked, checked = listed_row(offsets, full, row, rows, b, h, list_batch, list_head, LAYOUT // KEYS)
        if BIAS:
            bias += (b * bias_batch + h * bias_head + row) * columns
    else:
        sink, sink_tiles, left, low, high, end = key_tiles(
            first, offset, Tk, window, sink_tokens, starts, QUERIES, KEYS, WINDOW, SINKS, DOCUMENTS
        )
        unchecked = (high - low) // KEYS
        checked = sink_tiles + (low - left + end - high) // KEYS
    for CHECK in tl.static_range(2):
        for i in range(checked if CHECK else unchecked):
            mask, logit = -1, 0.0
            if LAYOUT:
                entry, place = listed_place(i + (unchecked if CHECK else 0), begin, blocks, LAYOUT, KEYS)
                if CHECK:
                    mask = tl.load(masks + entry)
                logit = bias_of(bias, place // LAYOUT, BIAS)
            elif CHECK:
                place = checked_place(i, sink, sink_tiles, left, low, high, KEYS)
            else:
                place = low + i * KEYS
            accumulator, total, peak = _forward_tile(
                accumulator, total, peak, q_tile, k, v, place, mask, logit, t, start_t, low_t, k_time * UNIT,
                v_time * UNIT, bits, scale2, Tk, sink_tokens, WIDTH, VALUE, WIDTH_BLOCK, VALUE_BLOCK, KEYS,
                SINKS, WINDOW or DOCUMENTS, LAYOUT, BIAS, CHECK == 1,
            )  # fmt: skip
    empty = total == 0
    total = tl.where(empty, 1.0, total)
    o += b * Tq * H * VALUE + h * VALUE
    store_rows(o, accumulator / total[:, None], first - offset, H * VALUE, Tq, VALUE, QUERIES, VALUE_BLOCK)
    value = tl.where(empty, float("-inf"), (peak + tl.log2(total)) * LN2)
    lse += b * Tq * H + (t - offset).to(tl.int64) * H + h
    tl.store(lse, value, mask=(t >= offset) & (t < Tk))
