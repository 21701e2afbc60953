# mypy: ignore-errors
"""The walk over chunks that carries the state, and the sums that each chunk reads from it, in Triton."""

import triton
import triton.language as tl

from zoo_kernels.delta.triton.parts import UNSPECIALIZED, product, rows_of, store_rows
from zoo_kernels.triton_chunks import place


@triton.jit(do_not_specialize=UNSPECIALIZED)
def walk_kernel(
    w,
    base,
    y,
    x,
    z,
    kept,
    initial,
    u,
    states,
    final,
    T: tl.int64,
    chunks: tl.int64,
    H: tl.int64,
    D: tl.constexpr,
    D_PADDED: tl.constexpr,
    E: tl.constexpr,
    TILES: tl.constexpr,
    SOLVES: tl.constexpr,
    WRITES: tl.constexpr,
    REVERSE: tl.constexpr,
    PRECISION: tl.constexpr,
    CHUNK: tl.constexpr,
    TILE: tl.constexpr,
):
    """Walks ``u = base - w S``, ``S <- kept S + y^T u + x^T z`` over chunks, from the last to the first if REVERSE.

    w, y, x: (B, T, H, D); base, u, z: (B, T, H, E); kept: (B, chunks, H, D). The first term is there if SOLVES, the
    second if WRITES. states: S before each chunk of the walk, (B, chunks, H, D, E).
    """
    tile, _, b, h = place(TILES, 1, H)
    columns = tile * TILE + tl.arange(0, TILE)
    wide = tl.arange(0, D_PADDED)
    element = wide[:, None] * E + columns[None, :]
    held = (wide < D)[:, None] & (columns < E)[None, :]
    state = tl.load(initial + (b * H + h) * (D * E) + element, mask=held, other=0.0)
    for step in range(chunks):
        n = step
        if REVERSE:
            n = chunks - 1 - step
        t = n * CHUNK + tl.arange(0, CHUNK)
        slot = (b * chunks + n) * H + h
        tl.store(states + slot * (D * E) + element, state, mask=held)
        keep = tl.load(kept + slot * D + wide, mask=wide < D, other=0.0)
        if SOLVES:
            w_tile = rows_of(w, b, t, h, H, wide, T, D, D_PADDED)
            solved = rows_of(base, b, t, h, H, columns, T, E, TILE * TILES).to(tl.float32)
            solved -= product(w_tile, state, PRECISION)
            store_rows(u, solved, b, t, h, H, columns, T, E)
        state = state * keep[:, None]
        if SOLVES:
            y_tile = rows_of(y, b, t, h, H, wide, T, D, D_PADDED)
            state += product(tl.trans(y_tile), solved, PRECISION)
        if WRITES:
            x_tile = rows_of(x, b, t, h, H, wide, T, D, D_PADDED)
            z_tile = rows_of(z, b, t, h, H, columns, T, E, TILE * TILES)
            state += product(tl.trans(x_tile), z_tile, PRECISION)
    tl.store(final + (b * H + h) * (D * E) + element, state, mask=held)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def outputs_kernel(
    x,
    states,
    first,
    u,
    second,
    v,
    out,
    T: tl.int64,
    chunks: tl.int64,
    H: tl.int64,
    D: tl.constexpr,
    PARTS: tl.constexpr,
    E: tl.constexpr,
    TILES: tl.constexpr,
    TWO: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    PRECISION: tl.constexpr,
    CHUNK: tl.constexpr,
    TILE_D: tl.constexpr,
    TILE: tl.constexpr,
):
    """Computes ``x S + first u``, plus ``second v`` if TWO, of each chunk, (B, T, H, E).

    first, second: (B, T, H, CHUNK), transposed if TRANSPOSED.
    """
    tile, n, b, h = place(TILES, chunks, H)
    i = tl.arange(0, CHUNK)
    t = n * CHUNK + i
    columns = tile * TILE + tl.arange(0, TILE)
    u_tile = rows_of(u, b, t, h, H, columns, T, E, TILE * TILES)
    pairs = rows_of(first, b, t, h, H, i, T, CHUNK, CHUNK)
    if TRANSPOSED:
        pairs = tl.trans(pairs)
    found = product(pairs, u_tile, PRECISION)
    if TWO:
        v_tile = rows_of(v, b, t, h, H, columns, T, E, TILE * TILES)
        others = rows_of(second, b, t, h, H, i, T, CHUNK, CHUNK)
        if TRANSPOSED:
            others = tl.trans(others)
        found += product(others, v_tile, PRECISION)
    states += ((b * chunks + n) * H + h) * (D * E)
    for part in range(PARTS):
        wide = part * TILE_D + tl.arange(0, TILE_D)
        x_tile = rows_of(x, b, t, h, H, wide, T, D, TILE_D * PARTS)
        held = (wide < D)[:, None] & (columns < E)[None, :]
        state = tl.load(states + wide[:, None] * E + columns[None, :], mask=held, other=0.0)
        found += product(x_tile, state, PRECISION)
    store_rows(out, found, b, t, h, H, columns, T, E)
