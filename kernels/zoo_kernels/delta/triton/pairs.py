# mypy: ignore-errors
"""Products of readers and writers inside chunks, and both weighted for the states between chunks, in Triton."""

import triton
import triton.language as tl

from zoo_kernels.delta.triton.parts import (
    UNSPECIALIZED,
    channel_decay,
    chunk_weights,
    level_weights,
    pairs_of_level,
    product,
    rows_of,
    store_rows,
)
from zoo_kernels.triton_chunks import head_decay, pair_weights, place, state_weights, totals


@triton.jit
def same_document(documents, b, t, T):
    """Returns which pairs of tokens are of one document."""
    ids = tl.load(documents + b * T + t, mask=t < T, other=0)
    return ids[:, None] == ids[None, :]


@triton.jit
def by_halves(of_q, of_p, q, p, y, decay, levels, READS: tl.constexpr, PRECISION: tl.constexpr, CHUNK: tl.constexpr):
    """Adds the products of readers and earlier writers, each channel with its decay, level by level of halves."""
    for level in range(levels):
        weights, right = level_weights(decay, level, PRECISION, CHUNK)
        pairs = pairs_of_level(level, CHUNK)
        writer = tl.trans(tl.where(right[:, None], 0.0, y * weights))
        of_q += tl.where(pairs, product(tl.where(right[:, None], q * weights, 0.0), writer, PRECISION), 0.0)
        if READS:
            of_p += tl.where(pairs, product(tl.where(right[:, None], p * weights, 0.0), writer, PRECISION), 0.0)
    return of_q, of_p


@triton.jit(do_not_specialize=UNSPECIALIZED)
def pairs_kernel(
    q,
    p,
    y,
    log_decay,
    documents,
    a_q,
    a_p,
    q_kept,
    p_kept,
    y_kept,
    kept,
    T: tl.int64,
    chunks: tl.int64,
    H: tl.int64,
    QH: tl.int64,
    PH: tl.int64,
    YH: tl.int64,
    levels: tl.int32,
    scale: tl.float32,
    D: tl.constexpr,
    TILES: tl.constexpr,
    KIND: tl.constexpr,
    DOCUMENTS: tl.constexpr,
    READS: tl.constexpr,
    FIRST: tl.constexpr,
    PRECISION: tl.constexpr,
    CHUNK: tl.constexpr,
    TILE: tl.constexpr,
):
    """Computes of one writer y what queries q and, if READS, reads p meet of it, (B, T, H, CHUNK).

    y_kept (B, T, H, D) is y with what it keeps to the end of its chunk. If FIRST, also what readers keep of the state
    before the chunk, q_kept and p_kept, and what the state itself keeps, (B, chunks, H, D).
    KIND of the decay: 0 none, 1 per head, 2 per token, 3 per channel. q, p and y have QH, PH and YH heads.
    """
    _, n, b, h = place(1, chunks, H)
    t0 = n * CHUNK
    i = tl.arange(0, CHUNK)
    t = t0 + i
    of_q = tl.zeros((CHUNK, CHUNK), tl.float32)
    of_p = tl.zeros((CHUNK, CHUNK), tl.float32)
    if KIND < 3:
        decay = head_decay(log_decay, h, KIND)
        total, fine, last, last_fine = totals(decay, log_decay, t0, T, b, h, H, CHUNK, KIND)
        query, key, keep = state_weights(total, fine, last, last_fine, documents, t0, T, b, 1.0, CHUNK, DOCUMENTS)
        query = query[:, None]
        key = key[:, None]
    for part in range(TILES):
        columns = part * TILE + tl.arange(0, TILE)
        q_tile = rows_of(q, b, t, h // (H // QH), QH, columns, T, D, TILE * TILES).to(tl.float32) * scale
        y_tile = rows_of(y, b, t, h // (H // YH), YH, columns, T, D, TILE * TILES).to(tl.float32)
        p_tile = q_tile
        if READS:
            p_tile = rows_of(p, b, t, h // (H // PH), PH, columns, T, D, TILE * TILES).to(tl.float32)
        if KIND == 3:
            decay = channel_decay(log_decay, documents, b, t, h, H, columns, T, D, TILE * TILES, DOCUMENTS)
            after = channel_decay(log_decay, documents, b, t + 1, h, H, columns, T, D, TILE * TILES, DOCUMENTS)
            after = tl.where(i[:, None] == CHUNK - 1, 0.0, after)
            query, key, keep = chunk_weights(decay, after)
            of_q, of_p = by_halves(of_q, of_p, q_tile, p_tile, y_tile, decay, levels, READS, PRECISION, CHUNK)
            of_q += tl.where(i[:, None] == i[None, :], tl.sum(q_tile * y_tile, 1)[:, None], 0.0)
        else:
            of_q += product(q_tile, tl.trans(y_tile), PRECISION)
            if READS:
                of_p += product(p_tile, tl.trans(y_tile), PRECISION)
        store_rows(y_kept, y_tile * key, b, t, h, H, columns, T, D)
        if FIRST:
            store_rows(q_kept, q_tile * query, b, t, h, H, columns, T, D)
            if READS:
                store_rows(p_kept, p_tile * query, b, t, h, H, columns, T, D)
            of_state = tl.zeros((TILE,), tl.float32) + keep
            tl.store(kept + ((b * chunks + n) * H + h) * D + columns, of_state, mask=columns < D)
    if KIND < 3:
        pair = pair_weights(total, fine, 1.0, CHUNK, False)
        if DOCUMENTS:
            pair = tl.where(same_document(documents, b, t, T), pair, 0.0)
        of_q = of_q * pair
        of_p = tl.where(i[:, None] > i[None, :], of_p * pair, 0.0)
    store_rows(a_q, of_q, b, t, h, H, i, T, CHUNK)
    if READS:
        store_rows(a_p, of_p, b, t, h, H, i, T, CHUNK)
