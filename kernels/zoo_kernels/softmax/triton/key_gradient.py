# mypy: ignore-errors
"""Gradients of the keys and values of exact attention in Triton.

One program sums over the query heads of its key head: no two programs write to one place, and the result does not
depend on the order in which they run.
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
    listed_place,
    listed_row,
    load_rows,
    query_tiles,
    read_until,
    store_rows,
)


@triton.jit
def _key_gradient_tile(
    grad_k,
    grad_v,
    k_tile,
    v_tile,
    q,
    grad_o,
    row_lse,
    row_delta,
    place,
    mask,
    bias,
    j,
    until,
    q_time,
    g_time,
    bits,
    scale2,
    offset,
    Tq,
    WIDTH: tl.constexpr,
    VALUE: tl.constexpr,
    WIDTH_BLOCK: tl.constexpr,
    VALUE_BLOCK: tl.constexpr,
    QUERIES: tl.constexpr,
    LAYOUT: tl.constexpr,
    BIAS: tl.constexpr,
    CHECK: tl.constexpr,
):
    """One query tile of dK and dV. Rows of the tile are keys, so that no result of a dot is transposed."""
    BOUND: tl.constexpr = CHECK or LAYOUT > 0  # a full block may hold the first or last queries
    t = place + tl.arange(0, QUERIES)
    row = place - offset
    q_tile = load_rows(q, row, q_time, Tq, WIDTH, QUERIES, WIDTH_BLOCK, BOUND)
    g_tile = load_rows(grad_o, row, g_time, Tq, VALUE, QUERIES, VALUE_BLOCK, BOUND)
    i = t - offset
    if BOUND:
        inside = (i >= 0) & (i < Tq)
        lse2 = tl.load(row_lse + i, mask=inside, other=float("inf"))
        delta = tl.load(row_delta + i, mask=inside, other=0.0)
    else:
        lse2, delta = tl.load(row_lse + i), tl.load(row_delta + i)
    score = dot(k_tile, tl.trans(q_tile)) * scale2
    if BIAS:
        score += bias
    if CHECK:
        seen = (t[None, :] >= j[:, None]) & (t[None, :] < until[:, None])
        if LAYOUT:
            seen = seen & is_set(t[None, :], j[:, None], mask, bits, LAYOUT)
        score = tl.where(seen, score, float("-inf"))
    weight = tl.exp2(tl.minimum(score - lse2[None, :], 0.0))  # at most 1, also where large scores are rounded
    grad_v = dot(weight.to(g_tile.dtype), g_tile, grad_v)
    gradient = weight * (dot(v_tile, tl.trans(g_tile)) - delta[None, :])
    return dot(gradient.to(q_tile.dtype), q_tile, grad_k), grad_v


@triton.jit(do_not_specialize=UNSPECIALIZED)
def key_gradient_kernel(
    q,
    k,
    v,
    grad_o,
    row_lse,
    row_delta,
    grad_k,
    grad_v,
    starts,
    ends,
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
    """Computes dK and dV of one key tile of one key head, summed over the query heads that read it."""
    first = tl.program_id(0) * KEYS
    g, b = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    k += b * (k_batch * UNIT) + g * (k_head * UNIT)
    v += b * (v_batch * UNIT) + g * (v_head * UNIT)
    if DOCUMENTS:
        starts += b * Tk
        ends += b * Tk
    j = first + tl.arange(0, KEYS)
    until = read_until(j, starts, ends, Tk, window, sink_tokens, WINDOW, SINKS, DOCUMENTS)
    k_tile = load_rows(k, first, k_time * UNIT, Tk, WIDTH, KEYS, WIDTH_BLOCK, True)
    v_tile = load_rows(v, first, v_time * UNIT, Tk, VALUE, KEYS, VALUE_BLOCK, True)
    sum_k = tl.zeros((KEYS, WIDTH_BLOCK), tl.float32)
    sum_v = tl.zeros((KEYS, VALUE_BLOCK), tl.float32)
    scale2 = scale * LOG2E
    if LAYOUT == 0:
        left, low, high, end = query_tiles(
            first, until, offset, Tk, window, starts, ends, QUERIES, KEYS, WINDOW, DOCUMENTS
        )
        unchecked = (high - low) // QUERIES
        checked = (low - left + end - high) // QUERIES
    for r in range(R):
        h = g * R + r
        q_of_head = q + b * (q_batch * UNIT) + h * (q_head * UNIT)
        g_of_head = grad_o + b * (g_batch * UNIT) + h * (g_head * UNIT)
        of_rows = (b * H + h) * Tq
        if LAYOUT:
            begin, unchecked, checked = listed_row(
                offsets, full, first // LAYOUT, rows, b, h, list_batch, list_head, LAYOUT // QUERIES
            )
        for CHECK in tl.static_range(2):
            for n in range(checked if CHECK else unchecked):
                mask, logit = -1, 0.0
                if LAYOUT:
                    entry, place = listed_place(n + (unchecked if CHECK else 0), begin, blocks, LAYOUT, QUERIES)
                    if CHECK:
                        mask = tl.load(masks + entry)
                    of_bias = (b * bias_batch + h * bias_head + place // LAYOUT) * columns + first // LAYOUT
                    logit = bias_of(bias, of_bias, BIAS)
                elif CHECK:
                    place = checked_place(n, left, 0, left, low, high, QUERIES)
                else:
                    place = low + n * QUERIES
                sum_k, sum_v = _key_gradient_tile(
                    sum_k, sum_v, k_tile, v_tile, q_of_head, g_of_head, row_lse + of_rows, row_delta + of_rows, place,
                    mask, logit, j, until, q_time * UNIT, g_time * UNIT, bits, scale2, offset, Tq, WIDTH, VALUE,
                    WIDTH_BLOCK, VALUE_BLOCK, QUERIES, LAYOUT, BIAS, CHECK == 1,
                )  # fmt: skip
    groups = H // R
    grad_k += b * Tk * groups * WIDTH + g * WIDTH
    grad_v += b * Tk * groups * VALUE + g * VALUE
    store_rows(grad_k, sum_k * scale, first, groups * WIDTH, Tk, WIDTH, KEYS, WIDTH_BLOCK)
    store_rows(grad_v, sum_v, first, groups * VALUE, Tk, VALUE, KEYS, VALUE_BLOCK)
