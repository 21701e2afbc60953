# mypy: ignore-errors
"""Gradients of readers, of one writer, and of the log decays, chunk by chunk, in Triton."""

import triton
import triton.language as tl

from zoo_kernels.delta.triton.pairs import same_document
from zoo_kernels.delta.triton.parts import (
    UNSPECIALIZED,
    channel_decay,
    chunk_weights,
    level_weights,
    pairs_of_level,
    product,
    rows_of,
    starts,
    store_rows,
)
from zoo_kernels.triton_chunks import head_decay, pair_weights, place, state_weights, totals


@triton.jit(do_not_specialize=UNSPECIALIZED)
def through_kernel(
    do,
    r,
    v,
    before,
    behind,
    dq,
    dp,
    dy,
    passed,
    T: tl.int64,
    chunks: tl.int64,
    H: tl.int64,
    D: tl.constexpr,
    PARTS: tl.constexpr,
    E: tl.constexpr,
    TILES: tl.constexpr,
    READS: tl.constexpr,
    FIRST: tl.constexpr,
    PRECISION: tl.constexpr,
    CHUNK: tl.constexpr,
    TILE_D: tl.constexpr,
    TILE: tl.constexpr,
):
    """Computes gradients of what meets the states: of the writer and, if FIRST, of readers, each (B, T, H, D).

    before, behind (B, chunks, H, D, E): states before chunks, and gradients of the states behind them; passed, if
    FIRST: the sums of their products, (B, chunks, H, D). Other arguments are those of gradients_kernel.
    """
    part, n, b, h = place(PARTS, chunks, H)
    t = n * CHUNK + tl.arange(0, CHUNK)
    wide = part * TILE_D + tl.arange(0, TILE_D)
    slot = (b * chunks + n) * H + h
    to_q = tl.zeros((CHUNK, TILE_D), tl.float32)
    to_p = tl.zeros((CHUNK, TILE_D), tl.float32)
    to_y = tl.zeros((CHUNK, TILE_D), tl.float32)
    over = tl.zeros((TILE_D,), tl.float32)
    for tile in range(TILES):
        columns = tile * TILE + tl.arange(0, TILE)
        held = (wide < D)[None, :] & (columns < E)[:, None]
        element = slot * (D * E) + wide[None, :] * E + columns[:, None]
        after = tl.load(behind + element, mask=held, other=0.0)
        v_tile = rows_of(v, b, t, h, H, columns, T, E, TILE * TILES)
        to_y += product(v_tile, after, PRECISION)
        if FIRST:
            state = tl.load(before + element, mask=held, other=0.0)
            over += tl.sum(state.to(tl.float32) * after.to(tl.float32), 0)
            do_tile = rows_of(do, b, t, h, H, columns, T, E, TILE * TILES)
            to_q += product(do_tile, state, PRECISION)
            if READS:
                r_tile = rows_of(r, b, t, h, H, columns, T, E, TILE * TILES)
                to_p += product(r_tile, state, PRECISION)
    store_rows(dy, to_y, b, t, h, H, wide, T, D)
    if FIRST:
        tl.store(passed + slot * D + wide, over, mask=wide < D)
        store_rows(dq, to_q, b, t, h, H, wide, T, D)
        if READS:
            store_rows(dp, to_p, b, t, h, H, wide, T, D)


@triton.jit
def of_pairs(
    do, r, v, b, t, h, H, T, E: tl.constexpr, TILES: tl.constexpr, READS: tl.constexpr, PRECISION: tl.constexpr,
    CHUNK: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Gradients of the products of readers and writer."""
    i = tl.arange(0, CHUNK)
    of_q = tl.zeros((CHUNK, CHUNK), tl.float32)
    of_p = tl.zeros((CHUNK, CHUNK), tl.float32)
    for part in range(TILES):
        columns = part * TILE + tl.arange(0, TILE)
        v_tile = rows_of(v, b, t, h, H, columns, T, E, TILE * TILES)
        do_tile = rows_of(do, b, t, h, H, columns, T, E, TILE * TILES)
        of_q += product(do_tile, tl.trans(v_tile), PRECISION)
        if READS:
            r_tile = rows_of(r, b, t, h, H, columns, T, E, TILE * TILES)
            of_p += product(r_tile, tl.trans(v_tile), PRECISION)
    of_q = tl.where(i[:, None] >= i[None, :], of_q, 0.0)
    of_p = tl.where(i[:, None] > i[None, :], of_p, 0.0)
    return of_q, of_p


@triton.jit
def of_head_decay(readers, writers, pairs, passed, CHUNK: tl.constexpr):
    """Gradient of each token's log decay: the sum of what passes over the token, and of nothing else.

    readers: from the state before the chunk. writers: to the one after it. pairs: reader i, writer j.
    """
    i = tl.arange(0, CHUNK)
    later = i[None, :] >= i[:, None]
    found = tl.sum(tl.where(later, readers[None, :], 0.0), 1) + tl.sum(tl.where(later, 0.0, writers[None, :]), 1)
    over = tl.cumsum(pairs, 0, reverse=True)  # readers from i on
    return found + tl.sum(tl.where(i[:, None] > i[None, :], over, 0.0), 1) + passed


@triton.jit
def level_gradients(of_pairs, reader, writer, to_reader, to_writer, level, weights, right, PRECISION, CHUNK):
    """Adds what a level of halves passes on to the gradients of a reader and of the writer."""
    block = tl.where(pairs_of_level(level, CHUNK), of_pairs, 0.0)
    near = tl.where(right[:, None], 0.0, writer * weights)
    far = tl.where(right[:, None], reader * weights, 0.0)
    to_reader += product(block, near, PRECISION) * weights
    to_writer += product(tl.trans(block), far, PRECISION) * weights
    return to_reader, to_writer


@triton.jit(do_not_specialize=UNSPECIALIZED)
def gradients_kernel(
    q,
    p,
    y,
    v,
    do,
    r,
    log_decay,
    documents,
    a_q,
    a_p,
    passed,
    dq,
    dp,
    dy,
    of_decay,
    T: tl.int64,
    chunks: tl.int64,
    H: tl.int64,
    QH: tl.int64,
    PH: tl.int64,
    YH: tl.int64,
    levels: tl.int32,
    scale: tl.float32,
    D: tl.constexpr,
    PARTS: tl.constexpr,
    E: tl.constexpr,
    TILES: tl.constexpr,
    KIND: tl.constexpr,
    DOCUMENTS: tl.constexpr,
    READS: tl.constexpr,
    FIRST: tl.constexpr,
    GRADIENT: tl.constexpr,
    PRECISION: tl.constexpr,
    CHUNK: tl.constexpr,
    TILE_D: tl.constexpr,
    TILE: tl.constexpr,
):
    """Computes gradients of q, of p if READS, and of writer y, each (B, T, H, D), through the values v of the writer.

    do, r (B, T, H, E): gradients of what q and p read. What through_kernel found lies where the gradients go, those of
    readers if FIRST. of_decay, if GRADIENT: (B, T, H), or (B, T, H, D) if KIND is 3. Other arguments are those of
    pairs_kernel.
    """
    _, n, b, h = place(1, chunks, H)
    t0 = n * CHUNK
    i = tl.arange(0, CHUNK)
    t = t0 + i
    slot = (b * chunks + n) * H + h
    of_q, of_p = of_pairs(do, r, v, b, t, h, H, T, E, TILES, READS, PRECISION, CHUNK, TILE)
    if KIND < 3:
        decay = head_decay(log_decay, h, KIND)
        total, fine, last, last_fine = totals(decay, log_decay, t0, T, b, h, H, CHUNK, KIND)
        query, key, keep = state_weights(total, fine, last, last_fine, documents, t0, T, b, 1.0, CHUNK, DOCUMENTS)
        query = query[:, None]
        key = key[:, None]
        pair = pair_weights(total, fine, 1.0, CHUNK, False)
        if DOCUMENTS:
            pair = tl.where(same_document(documents, b, t, T), pair, 0.0)
        if GRADIENT:
            products = of_q * rows_of(a_q, b, t, h, H, i, T, CHUNK, CHUNK)
            if READS:
                products += of_p * rows_of(a_p, b, t, h, H, i, T, CHUNK, CHUNK)
            products = tl.where(i[:, None] > i[None, :], products, 0.0)
            readers = tl.zeros((CHUNK,), tl.float32)
            writers = tl.zeros((CHUNK,), tl.float32)
            kept = 0.0
        of_q = of_q * pair
        of_p = of_p * pair
    else:
        own = tl.sum(tl.where(i[:, None] == i[None, :], of_q, 0.0), 1)[:, None]
    for part in range(PARTS):
        wide = part * TILE_D + tl.arange(0, TILE_D)
        to_y = rows_of(dy, b, t, h, H, wide, T, D, TILE_D * PARTS)
        to_q = tl.zeros((CHUNK, TILE_D), tl.float32)
        to_p = tl.zeros((CHUNK, TILE_D), tl.float32)
        over = tl.zeros((TILE_D,), tl.float32)
        if FIRST:
            to_q = rows_of(dq, b, t, h, H, wide, T, D, TILE_D * PARTS)
            over = tl.load(passed + slot * D + wide, mask=wide < D, other=0.0)
            if READS:
                to_p = rows_of(dp, b, t, h, H, wide, T, D, TILE_D * PARTS)
        q_tile = rows_of(q, b, t, h // (H // QH), QH, wide, T, D, TILE_D * PARTS).to(tl.float32) * scale
        y_tile = rows_of(y, b, t, h // (H // YH), YH, wide, T, D, TILE_D * PARTS).to(tl.float32)
        if READS:
            p_tile = rows_of(p, b, t, h // (H // PH), PH, wide, T, D, TILE_D * PARTS).to(tl.float32)
        if KIND == 3:
            decay = channel_decay(log_decay, documents, b, t, h, H, wide, T, D, TILE_D * PARTS, DOCUMENTS)
            after = channel_decay(log_decay, documents, b, t + 1, h, H, wide, T, D, TILE_D * PARTS, DOCUMENTS)
            after = tl.where(i[:, None] == CHUNK - 1, 0.0, after)
            query, key, keep = chunk_weights(decay, after)
        to_q = to_q * query
        to_p = to_p * query
        to_y = to_y * key
        if KIND < 3:
            if GRADIENT:
                readers += tl.sum(q_tile * to_q, 1)
                if READS:
                    readers += tl.sum(p_tile * to_p, 1)
                writers += tl.sum(y_tile * to_y, 1)
                kept += tl.sum(over, 0) * keep
            to_q += product(of_q, y_tile, PRECISION)
            to_y += product(tl.trans(of_q), q_tile, PRECISION)
            if READS:
                to_p += product(of_p, y_tile, PRECISION)
                to_y += product(tl.trans(of_p), p_tile, PRECISION)
        else:
            inside = tl.zeros((CHUNK, TILE_D), tl.float32)
            for level in range(levels):
                weights, right = level_weights(decay, level, PRECISION, CHUNK)
                to_q, inside = level_gradients(
                    of_q, q_tile, y_tile, to_q, inside, level, weights, right, PRECISION, CHUNK
                )  # fmt: skip
            change = q_tile * to_q
            to_q += own * y_tile
            if READS:  # a loop of its own: both readers at once take more registers than there are
                for level in range(levels):
                    weights, right = level_weights(decay, level, PRECISION, CHUNK)
                    to_p, inside = level_gradients(
                        of_p, p_tile, y_tile, to_p, inside, level, weights, right, PRECISION, CHUNK
                    )  # fmt: skip
                change += p_tile * to_p
            if GRADIENT:
                change -= y_tile * inside
                through = y_tile * to_y
                found = tl.cumsum(change, 0, reverse=True) + (tl.cumsum(through, 0) - through)
                found += (over * keep)[None, :]
                given = rows_of(log_decay, b, t, h, H, wide, T, D, TILE_D * PARTS)
                found = tl.where(given.to(tl.float32) > 0.0, 0.0, found)
                if DOCUMENTS:
                    found = tl.where(starts(documents, b, t, T)[:, None], 0.0, found)
                store_rows(of_decay, found, b, t, h, H, wide, T, D)
            to_y += inside + own * q_tile
        store_rows(dq, to_q * scale, b, t, h, H, wide, T, D)
        store_rows(dy, to_y, b, t, h, H, wide, T, D)
        if READS:
            store_rows(dp, to_p, b, t, h, H, wide, T, D)
    if KIND < 3 and GRADIENT:
        found = of_head_decay(readers, writers, products, kept, CHUNK)
        tl.store(of_decay + (b * T + t) * H + h, found, mask=t < T)
