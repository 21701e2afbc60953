# mypy: ignore-errors
"""Linear attention with a decay per channel in Triton: pairs of a chunk, states between chunks, and what is read.

A sequence is cut into chunks of CHUNK tokens, which are independent once the state before each is known:

    pairs     A[i, j] = scale * sum_d q_id k_jd exp(g_{j+1} + .. + g_i)_d  within a chunk, block by block
    states    S <- Diag(exp(g_1 + .. + g_C)) S + (k * what it keeps)^T v, of which that before each chunk is stored
    read      o = A v + scale * (q * what it keeps) S

Backwards in time ``states`` carries the gradient R of the state, ``read`` gives dv = A^T do + (k * ..) R, and
channel_gradients.py the rest. Pairs are ``(B, T, H, CHUNK)``, in row t those of token t with the tokens of its chunk.
"""

import triton
import triton.language as tl

from zoo_kernels.channel_pairs import diagonal_pairs, load_decays, since, until
from zoo_kernels.linear.triton.chunk import UNSPECIALIZED, load, place

FREE = (*UNSPECIALIZED, "chunks")


@triton.jit
def product(a, b, DTYPE: tl.constexpr, PRECISION: tl.constexpr):
    """Returns the product of fp32 operands: in bf16, which has their range, if the call is; fp16 has not, tf32 has."""
    if DTYPE == tl.bfloat16:
        return tl.dot(a.to(tl.bfloat16), b.to(tl.bfloat16))
    else:
        return tl.dot(a, b, input_precision=PRECISION)


@triton.jit(do_not_specialize=FREE)
def pairs_kernel(
    x,
    y,
    log_decay,
    documents,
    out,
    T: tl.int64,
    H: tl.int64,
    chunks: tl.int64,
    scale: tl.float32,
    xb: tl.int64,
    xt: tl.int64,
    xh: tl.int64,
    yb: tl.int64,
    yt: tl.int64,
    yh: tl.int64,
    X: tl.constexpr,
    TILES: tl.constexpr,
    ALIGN: tl.constexpr,
    DECAYS: tl.constexpr,
    DOCUMENTS: tl.constexpr,
    PRECISION: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
):
    """Computes the pairs of a block of readers; strides are in units of ALIGN numbers.

    Pairs above the diagonal are not written. Without DECAYS they are plain products, those of documents too.
    """
    number, n, b, h = place(CHUNK // BLOCK, chunks, H)
    begin = n * CHUNK + number * BLOCK
    if begin >= T:
        return
    i = tl.arange(0, BLOCK)
    j = tl.arange(0, CHUNK)
    t = begin + i
    s = n * CHUNK + j
    x += (b * xb + h * xh) * ALIGN
    y += (b * yb + h * yh) * ALIGN
    near = tl.zeros((BLOCK, BLOCK), tl.float32)
    far = tl.zeros((BLOCK, CHUNK), tl.float32)
    for d in range(TILES):
        wide = d * TILE + tl.arange(0, TILE)
        x_tile = load(x, t, xt * ALIGN, wide, T, X, TILE * TILES).to(tl.float32)
        y_tile = load(y, s, yt * ALIGN, wide, T, X, TILE * TILES).to(tl.float32)
        if DECAYS:
            own = load(y, t, yt * ALIGN, wide, T, X, TILE * TILES).to(tl.float32)
            decays = load_decays(log_decay, documents, t, wide, b, h, T, H, X, DOCUMENTS)
            following = load_decays(log_decay, documents, t + 1, wide, b, h, T, H, X, DOCUMENTS)
            near += diagonal_pairs(x_tile, own, decays, following, True, PRECISION)
            x_tile *= tl.exp2(since(decays))
            y_tile *= tl.exp2(until(log_decay, documents, s, begin, wide, b, h, T, H, X, DOCUMENTS))
        far += tl.dot(x_tile, tl.trans(y_tile), input_precision=PRECISION)
    out += ((b * T + t) * H + h)[:, None] * CHUNK
    written = (t < T)[:, None]
    if DECAYS:
        tl.store(out + (number * BLOCK + i)[None, :], near * scale, mask=written & (i >= 0)[None, :])
        written = written & (s < begin)[None, :]
    tl.store(out + j[None, :], far * scale, mask=written & (j >= 0)[None, :])


@triton.jit(do_not_specialize=FREE)
def channel_states_kernel(
    y,
    z,
    log_decay,
    documents,
    starts,
    states,
    factors,
    final,
    T: tl.int64,
    H: tl.int64,
    chunks: tl.int64,
    segments: tl.int64,
    segment: tl.int64,
    scale: tl.float32,
    yb: tl.int64,
    yt: tl.int64,
    yh: tl.int64,
    zb: tl.int64,
    zt: tl.int64,
    zh: tl.int64,
    Y: tl.constexpr,
    Z: tl.constexpr,
    TILES_Y: tl.constexpr,
    TILES: tl.constexpr,
    ALIGN: tl.constexpr,
    SUMS: tl.constexpr,
    DOCUMENTS: tl.constexpr,
    REVERSE: tl.constexpr,
    PRECISION: tl.constexpr,
    CHUNK: tl.constexpr,
    TILE_Y: tl.constexpr,
    TILE: tl.constexpr,
):
    """Carries the state over a segment of ``segment`` chunks, from its end to its beginning if REVERSE.

    SUMS: from zeros; states ``(segments, B, H, Y, Z)`` gets what the segment adds and factors ``(segments, B, H, Y)``
    what it keeps of the state beyond it. Else from starts ``(segments, B, H, Y, Z)``; states ``(chunks, B, H, Y, Z)``
    gets that before (behind) each chunk and final ``(B, H, Y, Z)`` that beyond all.
    """
    both, part, b, h = place(TILES_Y * TILES, segments, H)
    rows_of_all = tl.num_programs(0).to(tl.int64) // (TILES_Y * TILES * segments)
    tall = both // TILES * TILE_Y + tl.arange(0, TILE_Y)
    columns = both % TILES * TILE + tl.arange(0, TILE)
    y += (b * yb + h * yh) * ALIGN
    z += (b * zb + h * zh) * ALIGN
    row = b * H + h
    element = tall[:, None] * Z + columns[None, :]
    held = (tall < Y)[:, None] & (columns < Z)[None, :]
    begin = part * segment
    stop = tl.minimum(begin + segment, chunks)
    state = tl.zeros((TILE_Y, TILE), tl.float32)
    total = tl.zeros((TILE_Y,), tl.float32)
    if not SUMS:
        state += tl.load(starts + (part * rows_of_all + row) * (Y * Z) + element, mask=held, other=0.0)
    for m in range(begin, stop):
        n = m
        if REVERSE:
            n = stop - 1 - (m - begin)
        if not SUMS:
            tl.store(states + (n * rows_of_all + row) * (Y * Z) + element, state, mask=held)
        t = n * CHUNK + tl.arange(0, CHUNK)
        y_tile = load(y, t, yt * ALIGN, tall, T, Y, TILE_Y * TILES_Y)
        z_tile = load(z, t, zt * ALIGN, columns, T, Z, TILE * TILES).to(tl.float32)
        decays = load_decays(log_decay, documents, t, tall, b, h, T, H, Y, DOCUMENTS)
        if REVERSE:
            kept = since(decays)
        else:
            kept = until(log_decay, documents, t, (n + 1) * CHUNK, tall, b, h, T, H, Y, DOCUMENTS)
        over = tl.sum(decays, 0)
        added = product(tl.trans(y_tile.to(tl.float32) * tl.exp2(kept)), z_tile, y.dtype.element_ty, PRECISION)
        state = state * tl.exp2(over)[:, None] + added * scale
        total += over
    if SUMS:
        slot = part * rows_of_all + row
        tl.store(states + slot * (Y * Z) + element, state, mask=held)
        tl.store(factors + slot * Y + tall, tl.exp2(total), mask=(tall < Y) & (both % TILES == 0))
    else:
        ends = begin == 0 if REVERSE else stop == chunks
        if ends:
            tl.store(final + row * (Y * Z) + element, state, mask=held)


@triton.jit(do_not_specialize=FREE)
def read_kernel(
    x,
    z,
    pairs,
    log_decay,
    documents,
    states,
    out,
    T: tl.int64,
    H: tl.int64,
    chunks: tl.int64,
    scale: tl.float32,
    xb: tl.int64,
    xt: tl.int64,
    xh: tl.int64,
    zb: tl.int64,
    zt: tl.int64,
    zh: tl.int64,
    X: tl.constexpr,
    Z: tl.constexpr,
    TILES_X: tl.constexpr,
    TILES: tl.constexpr,
    ALIGN: tl.constexpr,
    DOCUMENTS: tl.constexpr,
    REVERSE: tl.constexpr,
    PRECISION: tl.constexpr,
    CHUNK: tl.constexpr,
    TILE_X: tl.constexpr,
    TILE: tl.constexpr,
):
    """Computes out ``(B, T, H, Z)`` of a chunk: pairs times z, and x times the state before it (behind it if REVERSE).

    ``scale`` is of the second part alone. REVERSE: x are keys, z gradients of outputs, and pairs are transposed.
    """
    tile, n, b, h = place(TILES, chunks, H)
    rows_of_all = tl.num_programs(0).to(tl.int64) // (TILES * chunks)
    columns = tile * TILE + tl.arange(0, TILE)
    x += (b * xb + h * xh) * ALIGN
    z += (b * zb + h * zh) * ALIGN
    states += (n * rows_of_all + b * H + h) * (X * Z)
    i = tl.arange(0, CHUNK)
    t = n * CHUNK + i
    far = tl.zeros((CHUNK, TILE), tl.float32)
    for d in range(TILES_X):
        wide = d * TILE_X + tl.arange(0, TILE_X)
        x_tile = load(x, t, xt * ALIGN, wide, T, X, TILE_X * TILES_X)
        if REVERSE:
            kept = until(log_decay, documents, t, (n + 1) * CHUNK, wide, b, h, T, H, X, DOCUMENTS)
        else:
            kept = since(load_decays(log_decay, documents, t, wide, b, h, T, H, X, DOCUMENTS))
        held = (wide < X)[:, None] & (columns < Z)[None, :]
        state = tl.load(states + wide[:, None] * Z + columns[None, :], mask=held, other=0.0)
        far += product(x_tile.to(tl.float32) * tl.exp2(kept), state, x.dtype.element_ty, PRECISION)
    token = (b * T + t) * H + h
    z_tile = load(z, t, zt * ALIGN, columns, T, Z, TILE * TILES)
    if REVERSE:
        met = (i[None, :] >= i[:, None]) & (t < T)[None, :]
        a = tl.load(pairs + token[None, :] * CHUNK + i[:, None], mask=met, other=0.0)
    else:
        met = (i[:, None] >= i[None, :]) & (t < T)[:, None]
        a = tl.load(pairs + token[:, None] * CHUNK + i[None, :], mask=met, other=0.0)
    near = product(a, z_tile.to(tl.float32), x.dtype.element_ty, PRECISION)
    written = (t < T)[:, None] & (columns < Z)[None, :]
    tl.store(out + token[:, None] * Z + columns[None, :], near + far * scale, mask=written)
