# mypy: ignore-errors
"""The triangular systems of chunks in Triton: inverses by substitution in blocks of 16, merged, and what they solve."""

import triton
import triton.language as tl

from zoo_kernels.delta.triton.parts import UNSPECIALIZED, exact, product, rows_of, store_rows
from zoo_kernels.triton_chunks import place


@triton.jit
def inverse_of(lower, PRECISION: tl.constexpr, CHUNK: tl.constexpr, MERGES: tl.constexpr):
    """Inverse of the identity plus a strictly lower triangular matrix, in fp32.

    Rows of all blocks of 16 on the diagonal are substituted at once; two inverses A and D beside B then merge to one
    with ``-D B A`` below. Powers of the matrix would cancel where keys are nearly equal.
    """
    BLOCKS: tl.constexpr = CHUNK // 16
    of_rows = tl.reshape(lower, (BLOCKS, 16, BLOCKS, 16))
    block = tl.arange(0, BLOCKS)
    own = block[:, None, None, None] == block[None, None, :, None]
    diagonal = tl.sum(tl.where(own, of_rows, 0.0), 2)
    row = tl.arange(0, 16)
    one = (row[:, None] == row[None, :]).to(tl.float32)
    found = tl.zeros((BLOCKS, 16, 16), tl.float32) + one[None, :, :]
    for r in range(1, 16):
        here = row[None, :, None] == r
        weights = tl.sum(tl.where(here, diagonal, 0.0), 1)
        passed = tl.sum(weights[:, :, None] * found, 1)
        found = tl.where(here, found - passed[:, None, :], found)
    spread = tl.where(own, found[:, :, None, :], 0.0)
    inverse = tl.reshape(spread, (CHUNK, CHUNK))
    i = tl.arange(0, CHUNK)
    for merge in tl.static_range(MERGES):
        HALF: tl.constexpr = 16 << merge
        beside = (i[:, None] // (2 * HALF) == i[None, :] // (2 * HALF)) & (i[:, None] // HALF > i[None, :] // HALF)
        below = exact(inverse, tl.where(beside, lower, 0.0), PRECISION)
        inverse -= exact(below, inverse, PRECISION)
    return inverse


@triton.jit(do_not_specialize=UNSPECIALIZED)
def solve_kernel(
    a_p,
    beta,
    inverse,
    T: tl.int64,
    chunks: tl.int64,
    H: tl.int64,
    MERGES: tl.constexpr,
    BETA: tl.constexpr,
    PRECISION: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Computes ``(I + beta A)^-1 beta`` of each chunk, (B, T, H, CHUNK) fp32; without BETA, beta is 1."""
    _, n, b, h = place(1, chunks, H)
    i = tl.arange(0, CHUNK)
    t = n * CHUNK + i
    lower = rows_of(a_p, b, t, h, H, i, T, CHUNK, CHUNK)
    if BETA:
        weight = tl.load(beta + (b * T + t) * H + h, mask=t < T, other=0.0).to(tl.float32)
        lower = lower * weight[:, None]
    found = inverse_of(lower, PRECISION, CHUNK, MERGES)
    if BETA:
        found = found * weight[None, :]
    store_rows(inverse, found, b, t, h, H, i, T, CHUNK)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def apply_kernel(
    inverse,
    a,
    x,
    out,
    T: tl.int64,
    chunks: tl.int64,
    H: tl.int64,
    X: tl.constexpr,
    TILES: tl.constexpr,
    PAIRS: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    PRECISION: tl.constexpr,
    CHUNK: tl.constexpr,
    TILE: tl.constexpr,
):
    """Computes the inverse times x (B, T, H, X), if PAIRS minus it times a times x; transposed both if TRANSPOSED."""
    tile, n, b, h = place(TILES, chunks, H)
    i = tl.arange(0, CHUNK)
    t = n * CHUNK + i
    columns = tile * TILE + tl.arange(0, TILE)
    x_tile = rows_of(x, b, t, h, H, columns, T, X, TILE * TILES).to(tl.float32)
    if PAIRS:
        pairs = rows_of(a, b, t, h, H, i, T, CHUNK, CHUNK)
        if TRANSPOSED:
            pairs = tl.trans(pairs)
        x_tile = -product(pairs, x_tile, PRECISION)
    solved = rows_of(inverse, b, t, h, H, i, T, CHUNK, CHUNK)
    if TRANSPOSED:
        solved = tl.trans(solved)
    store_rows(out, exact(solved, x_tile, PRECISION), b, t, h, H, columns, T, X)
