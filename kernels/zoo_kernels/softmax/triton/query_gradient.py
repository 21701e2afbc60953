# mypy: ignore-errors
"""Gradient of the queries of exact attention in Triton.

The weights are recomputed from the log-sum-exp. The kernel also writes what :mod:`.key_gradient` needs of each query
row: its log-sum-exp in base 2, and delta = sum(o * grad_o) - grad_lse.
"""

import triton
import triton.language as tl

from zoo_kernels.softmax.triton.parts import (
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
def _query_gradient_tile(
    accumulator,
    q_tile,
    g_tile,
    lse2,
    delta,
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
    """One key tile of dQ: the running sum, and the tile's gradients of the logits."""
    k_tile = load_rows(k, place, k_time, Tk, WIDTH, KEYS, WIDTH_BLOCK, CHECK)
    v_tile = load_rows(v, place, v_time, Tk, VALUE, KEYS, VALUE_BLOCK, CHECK)
    score = dot(q_tile, tl.trans(k_tile)) * scale2
    if BIAS:
        score += bias
    if CHECK:
        j = (place + tl.arange(0, KEYS))[None, :]
        seen = may_read(t[:, None], j, start_t[:, None], low_t[:, None], sink_tokens, SINKS, BOUND)
        if LAYOUT:
            seen = seen & is_set(t[:, None], j, mask, bits, LAYOUT)
        score = tl.where(seen, score, float("-inf"))
    weight = tl.exp2(tl.minimum(score - lse2[:, None], 0.0))  # at most 1, also where large scores are rounded
    gradient = weight * (dot(g_tile, tl.trans(v_tile)) - delta[:, None])
    return dot(gradient.to(k_tile.dtype), k_tile, accumulator), gradient


@triton.jit(do_not_specialize=UNSPECIALIZED)
def query_gradient_kernel(
    q,
    k,
    v,
    o,
    lse,
    grad_o,
    grad_lse,
    grad_q,
    row_lse,
    row_delta,
    grad_bias,
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
    g_batch: tl.int64,
    g_time: tl.int64,
    g_head: tl.int64,
    l_batch: tl.int64,
    l_time: tl.int64,
    l_head: tl.int64,
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
    """Computes dQ of one query tile, row statistics for dK and dV, and the sums over its key tiles for the bias."""
    h, b = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    first = (tl.num_programs(0) - 1 - tl.program_id(0) + offset // QUERIES) * QUERIES
    q += b * (q_batch * UNIT) + h * (q_head * UNIT)
    k += b * (k_batch * UNIT) + (h // R) * (k_head * UNIT)
    v += b * (v_batch * UNIT) + (h // R) * (v_head * UNIT)
    grad_o += b * (g_batch * UNIT) + h * (g_head * UNIT)
    if DOCUMENTS:
        starts += b * Tk
    t = first + tl.arange(0, QUERIES)
    start_t, low_t = readable_from(t, starts, Tk, window, WINDOW, DOCUMENTS)
    row = first - offset
    q_tile = load_rows(q, row, q_time * UNIT, Tq, WIDTH, QUERIES, WIDTH_BLOCK, True)
    g_tile = load_rows(grad_o, row, g_time * UNIT, Tq, VALUE, QUERIES, VALUE_BLOCK, True)
    o_tile = load_rows(o + b * Tq * H * VALUE + h * VALUE, row, H * VALUE, Tq, VALUE, QUERIES, VALUE_BLOCK, True)
    inside, i = (t >= offset) & (t < Tk), (t - offset).to(tl.int64)
    lse2 = tl.load(lse + b * Tq * H + i * H + h, mask=inside, other=float("-inf")) * LOG2E
    empty = lse2 == float("-inf")
    lse2 = tl.where(empty, float("inf"), lse2)  # exp2(score - lse2) is then 0
    delta = tl.sum(o_tile.to(tl.float32) * g_tile.to(tl.float32), 1)
    delta -= tl.load(grad_lse + b * l_batch + i * l_time + h * l_head, mask=inside, other=0.0).to(tl.float32)
    delta = tl.where(empty, 0.0, delta)
    tl.store(row_lse + (b * H + h) * Tq + i, lse2, mask=inside)
    tl.store(row_delta + (b * H + h) * Tq + i, delta, mask=inside)
    accumulator = tl.zeros((QUERIES, WIDTH_BLOCK), tl.float32)
    scale2 = scale * LOG2E
    if LAYOUT:
        of_row = first // LAYOUT
        begin, unchecked, checked = listed_row(offsets, full, of_row, rows, b, h, list_batch, list_head, LAYOUT // KEYS)
        if BIAS:
            bias += (b * bias_batch + h * bias_head + of_row) * columns
            tiles = rows * (LAYOUT // QUERIES)
            grad_bias += ((b * H + h) * tiles + first // QUERIES) * (columns * (LAYOUT // KEYS))
    else:
        sink, sink_tiles, left, low, high, end = key_tiles(
            first, offset, Tk, window, sink_tokens, starts, QUERIES, KEYS, WINDOW, SINKS, DOCUMENTS
        )
        unchecked = (high - low) // KEYS
        checked = sink_tiles + (low - left + end - high) // KEYS
    for CHECK in tl.static_range(2):
        for n in range(checked if CHECK else unchecked):
            mask, logit = -1, 0.0
            if LAYOUT:
                entry, place = listed_place(n + (unchecked if CHECK else 0), begin, blocks, LAYOUT, KEYS)
                if CHECK:
                    mask = tl.load(masks + entry)
                logit = bias_of(bias, place // LAYOUT, BIAS)
            elif CHECK:
                place = checked_place(n, sink, sink_tiles, left, low, high, KEYS)
            else:
                place = low + n * KEYS
            accumulator, gradient = _query_gradient_tile(
                accumulator, q_tile, g_tile, lse2, delta, k, v, place, mask, logit, t, start_t, low_t,
                k_time * UNIT, v_time * UNIT, bits, scale2, Tk, sink_tokens, WIDTH, VALUE, WIDTH_BLOCK, VALUE_BLOCK,
                KEYS, SINKS, WINDOW or DOCUMENTS, LAYOUT, BIAS, CHECK == 1,
            )  # fmt: skip
            if BIAS:
                tl.store(grad_bias + place // KEYS, tl.sum(tl.sum(gradient, 1), 0))
    grad_q += b * Tq * H * WIDTH + h * WIDTH
    store_rows(grad_q, accumulator * scale, row, H * WIDTH, Tq, WIDTH, QUERIES, WIDTH_BLOCK)
