# mypy: ignore-errors
"""Gradients of queries, keys and decays of linear attention with a decay per channel in Triton.

Let P[i, j] = scale * do_i . v_j be the gradients of the pairs of a chunk. ``pair_gradients`` brings them through the
pairs j < i, block by block; ``channel_gradients`` adds a token's own pair and what came through the states S before
the chunk and R, the gradient of that behind it. The decay of token t scales what passes over t:

    dg_t = sum_{i >= t} (q dq - k dk)_i + sum_{j < t} (k * dk through R)_j + (S * R over the chunk), summed over E,

where dq is all but its own pair and dk of pairs alone. All sums are of one chunk, so that none is much larger than
what is left of it.
"""

import triton
import triton.language as tl

from zoo_kernels.channel_pairs import diagonal_gradients, load_decays, since, until
from zoo_kernels.linear.triton.channels import FREE, product
from zoo_kernels.linear.triton.chunk import load, place


@triton.jit(do_not_specialize=FREE)
def pair_gradients_kernel(
    x,
    y,
    log_decay,
    documents,
    pairs,
    to_x,
    to_y,
    T: tl.int64,
    H: tl.int64,
    chunks: tl.int64,
    xb: tl.int64,
    xt: tl.int64,
    xh: tl.int64,
    yb: tl.int64,
    yt: tl.int64,
    yh: tl.int64,
    X: tl.constexpr,
    TILES: tl.constexpr,
    ALIGN: tl.constexpr,
    DOCUMENTS: tl.constexpr,
    PRECISION: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
):
    """Computes to_x, to_y ``(B, T, H, X)``, fp32, of a block of tokens and a tile of channels from P ``pairs``."""
    both, n, b, h = place(TILES * (CHUNK // BLOCK), chunks, H)
    number = both // TILES
    begin = n * CHUNK + number * BLOCK
    if begin >= T:
        return
    i = tl.arange(0, BLOCK)
    j = tl.arange(0, CHUNK)
    t = begin + i
    s = n * CHUNK + j
    columns = both % TILES * TILE + tl.arange(0, TILE)
    x += (b * xb + h * xh) * ALIGN
    y += (b * yb + h * yh) * ALIGN
    pairs += (b * T * H + h) * CHUNK
    x_tile = load(x, t, xt * ALIGN, columns, T, X, TILE * TILES).to(tl.float32)
    y_tile = load(y, t, yt * ALIGN, columns, T, X, TILE * TILES).to(tl.float32)
    decays = load_decays(log_decay, documents, t, columns, b, h, T, H, X, DOCUMENTS)
    following = load_decays(log_decay, documents, t + 1, columns, b, h, T, H, X, DOCUMENTS)
    met = (t < T)[:, None] & (i[:, None] > i[None, :])
    own = t[:, None] * (H * CHUNK) + number * BLOCK + i[None, :]
    grad = tl.load(pairs + own, mask=met, other=0.0)
    of_x, of_y = diagonal_gradients(x_tile, y_tile, decays, following, grad, PRECISION)

    y_tile = load(y, s, yt * ALIGN, columns, T, X, TILE * TILES).to(tl.float32)
    y_tile *= tl.exp2(until(log_decay, documents, s, begin, columns, b, h, T, H, X, DOCUMENTS))
    met = (t < T)[:, None] & (s < begin)[None, :]
    grad = tl.load(pairs + t[:, None] * (H * CHUNK) + j[None, :], mask=met, other=0.0)
    of_x += tl.dot(grad, y_tile, input_precision=PRECISION) * tl.exp2(since(decays))

    end = begin + BLOCK
    beyond = load_decays(log_decay, documents, s, columns, b, h, T, H, X, DOCUMENTS)
    x_tile = load(x, s, xt * ALIGN, columns, T, X, TILE * TILES).to(tl.float32)
    x_tile *= tl.exp2(since(tl.where((s >= end)[:, None], beyond, 0.0)))
    met = (s < T)[None, :] & (s >= end)[None, :] & (i >= 0)[:, None]
    grad = tl.load(pairs + s[None, :] * (H * CHUNK) + (number * BLOCK + i)[:, None], mask=met, other=0.0)
    kept = tl.exp2(until(log_decay, documents, t, end, columns, b, h, T, H, X, DOCUMENTS))
    of_y += tl.dot(grad, x_tile, input_precision=PRECISION) * kept
    token = ((b * T + t) * H + h)[:, None] * X + columns[None, :]
    written = (t < T)[:, None] & (columns < X)[None, :]
    tl.store(to_x + token, of_x, mask=written)
    tl.store(to_y + token, of_y, mask=written)


@triton.jit(do_not_specialize=FREE)
def channel_gradients_kernel(
    q,
    k,
    z,
    o,
    log_decay,
    documents,
    pairs,
    before,
    behind,
    of_q,
    of_k,
    to_q,
    to_k,
    to_decay,
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
    zb: tl.int64,
    zt: tl.int64,
    zh: tl.int64,
    ob: tl.int64,
    ot: tl.int64,
    oh: tl.int64,
    X: tl.constexpr,
    Z: tl.constexpr,
    TILES: tl.constexpr,
    TILES_Z: tl.constexpr,
    ALIGN: tl.constexpr,
    GRADIENT: tl.constexpr,
    DOCUMENTS: tl.constexpr,
    PRECISION: tl.constexpr,
    CHUNK: tl.constexpr,
    TILE: tl.constexpr,
    TILE_Z: tl.constexpr,
):
    """Computes to_q, to_k and, if GRADIENT, to_decay ``(B, T, H, X)`` of a chunk and a tile of channels.

    Args with strides: q (x), k (y), values z and gradients of outputs o. before, behind: S and R ``(chunks, B, H, X,
    Z)``. of_q, of_k: what pair_gradients gave.
    """
    tile, n, b, h = place(TILES, chunks, H)
    rows_of_all = tl.num_programs(0).to(tl.int64) // (TILES * chunks)
    columns = tile * TILE + tl.arange(0, TILE)
    z += (b * zb + h * zh) * ALIGN
    o += (b * ob + h * oh) * ALIGN
    slot = (n * rows_of_all + b * H + h) * (X * Z)
    i = tl.arange(0, CHUNK)
    t = n * CHUNK + i
    far_q = tl.zeros((CHUNK, TILE), tl.float32)
    far_k = tl.zeros((CHUNK, TILE), tl.float32)
    kept = tl.zeros((TILE,), tl.float32)
    for e in range(TILES_Z):
        wide = e * TILE_Z + tl.arange(0, TILE_Z)
        element = slot + columns[None, :] * Z + wide[:, None]
        held = (columns < X)[None, :] & (wide < Z)[:, None]
        state = tl.load(before + element, mask=held, other=0.0)
        of_state = tl.load(behind + element, mask=held, other=0.0)
        z_tile = load(z, t, zt * ALIGN, wide, T, Z, TILE_Z * TILES_Z)
        o_tile = load(o, t, ot * ALIGN, wide, T, Z, TILE_Z * TILES_Z)
        far_q += product(o_tile.to(tl.float32), state, q.dtype.element_ty, PRECISION)
        far_k += product(z_tile.to(tl.float32), of_state, q.dtype.element_ty, PRECISION)
        kept += tl.sum(state * of_state, 0)
    decays = load_decays(log_decay, documents, t, columns, b, h, T, H, X, DOCUMENTS)
    far_q *= tl.exp2(since(decays)) * scale
    far_k *= tl.exp2(until(log_decay, documents, t, (n + 1) * CHUNK, columns, b, h, T, H, X, DOCUMENTS))
    token = (b * T + t) * H + h
    element = token[:, None] * X + columns[None, :]
    written = (t < T)[:, None] & (columns < X)[None, :]
    q_tile = load(q + (b * xb + h * xh) * ALIGN, t, xt * ALIGN, columns, T, X, TILE * TILES).to(tl.float32)
    k_tile = load(k + (b * yb + h * yh) * ALIGN, t, yt * ALIGN, columns, T, X, TILE * TILES).to(tl.float32)
    dq = tl.load(of_q + element, mask=written, other=0.0) + far_q
    dk = tl.load(of_k + element, mask=written, other=0.0)
    if GRADIENT:
        change = tl.cumsum(q_tile * dq - k_tile * dk, 0, reverse=True)
        passing = k_tile * far_k
        change += tl.cumsum(passing, 0) - passing + (kept * tl.exp2(tl.sum(decays, 0)))[None, :]
        given = tl.load(log_decay + element, mask=written, other=0.0)
        change = tl.where(given > 0, 0.0, change)
        if DOCUMENTS:
            now = tl.load(documents + b * T + t, mask=t < T, other=0)
            last = tl.load(documents + b * T + tl.maximum(t - 1, 0), mask=t < T, other=0)
            change = tl.where((now != last)[:, None], 0.0, change)
        tl.store(to_decay + element, change, mask=written)
    own = tl.load(pairs + token * CHUNK + i, mask=t < T, other=0.0)[:, None]
    tl.store(to_q + element, dq + own * k_tile, mask=written)
    tl.store(to_k + element, dk + far_k + own * q_tile, mask=written)
