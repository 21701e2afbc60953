# mypy: ignore-errors
"""Masked left product over all pairs in Triton (Lightning Attention-1): O(T^2) work, one program per tile of tokens."""

import triton
import triton.language as tl

from zoo_kernels.linear.triton.chunk import UNSPECIALIZED, read_state, weigh
from zoo_kernels.triton_chunks import LOG2E, load, place


@triton.jit
def _reach(totals, b, h, T, H, tokens, KIND: tl.constexpr):
    """Running sum of the log decays (base 2, fp64 where it is not a plain multiple) up to and with each token."""
    if KIND == 0:
        total = tl.zeros_like(tokens).to(tl.float32)
    elif KIND == 1:
        total = (tokens + 1).to(tl.float32)
    else:
        total = tl.load(totals + (b * T + tokens) * H + h, mask=tokens < T, other=0.0)
    return total


@triton.jit
def _power(difference, log_decay, h, KIND: tl.constexpr):
    """Weight for a difference of running sums; never above 1."""
    if KIND == 1:
        exponent = difference * tl.load(log_decay + h) * LOG2E
    elif KIND == 2:
        exponent = (difference * LOG2E).to(tl.float32)
    else:
        exponent = difference
    return tl.exp2(tl.minimum(exponent, 0.0))


@triton.jit(do_not_specialize=UNSPECIALIZED)
def parallel_kernel(
    x,
    y,
    z,
    out,
    own,
    log_decay,
    totals,
    documents,
    state,
    partial,
    T: tl.int64,
    H: tl.int64,
    segments: tl.int64,
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
    X_PADDED: tl.constexpr,
    Z: tl.constexpr,
    TILES: tl.constexpr,
    ALIGN: tl.constexpr,
    KIND: tl.constexpr,
    DOCUMENTS: tl.constexpr,
    REVERSE: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    GRADIENT: tl.constexpr,
    PRECISION: tl.constexpr,
    CHUNK: tl.constexpr,
    TILE: tl.constexpr,
):
    """Computes the left product of one tile of CHUNK tokens with all tokens before it.

    Arguments are those of mix_kernel; ``segments`` counts tiles; state (B, H, X, Z) lies before (behind) the sequence.
    """
    tile, part, b, h = place(TILES, segments, H)
    rows_of_all = tl.num_programs(0).to(tl.int64) // (TILES * segments)
    columns = tile * TILE + tl.arange(0, TILE)
    wide = tl.arange(0, X_PADDED)
    x += (b * xb + h * xh) * ALIGN
    y += (b * yb + h * yh) * ALIGN
    z += (b * zb + h * zh) * ALIGN
    t = part * CHUNK + tl.arange(0, CHUNK)
    x_tile = load(x, t, xt * ALIGN, wide, T, X, X_PADDED)
    here = _reach(totals, b, h, T, H, t, KIND)
    ids = t * 0
    if DOCUMENTS:
        ids = tl.load(documents + b * T + t, mask=t < T, other=0)

    if TRANSPOSED:
        element = columns[None, :] * X + wide[:, None]
    else:
        element = wide[:, None] * Z + columns[None, :]
    held = (wide < X)[:, None] & (columns < Z)[None, :]
    carried = tl.load(state + (b * H + h) * (X * Z) + element, mask=held, other=0.0)
    edge = (T - 1 + tl.arange(0, 1)) if REVERSE else tl.arange(0, 1).to(tl.int64)
    if REVERSE:
        read = _power(_reach(totals, b, h, T, H, edge, KIND) - here, log_decay, h, KIND)
    else:
        read = _power(here, log_decay, h, KIND) * scale
    if DOCUMENTS:
        read = tl.where(ids == tl.load(documents + b * T + edge), read, 0.0)
    far = read_state(x_tile, carried, PRECISION) * read[:, None]

    near = tl.zeros((CHUNK, TILE), tl.float32)
    through = tl.zeros((CHUNK,), tl.float32)
    if GRADIENT:
        own_tile = load(own + (b * ob + h * oh) * ALIGN, t, ot * ALIGN, columns, T, Z, TILE * TILES)
        through += tl.sum(own_tile * far, 1)
    begin = part if REVERSE else part * 0
    stop = segments if REVERSE else part + 1
    for n in range(begin, stop):
        s = n * CHUNK + tl.arange(0, CHUNK)
        y_tile = load(y, s, yt * ALIGN, wide, T, X, X_PADDED)
        z_tile = load(z, s, zt * ALIGN, columns, T, Z, TILE * TILES)
        there = _reach(totals, b, h, T, H, s, KIND)
        if REVERSE:
            difference = there[None, :] - here[:, None]
            allowed = s[None, :] >= t[:, None]
        else:
            difference = here[:, None] - there[None, :]
            allowed = t[:, None] >= s[None, :]
        if DOCUMENTS:
            allowed = allowed & (ids[:, None] == tl.load(documents + b * T + s, mask=s < T, other=0)[None, :])
        pair = tl.where(allowed, _power(difference, log_decay, h, KIND) * scale, 0.0)
        scores = tl.dot(x_tile, tl.trans(y_tile), input_precision=PRECISION) * pair
        near += weigh(scores, z_tile, PRECISION)
        if GRADIENT:
            products = tl.dot(own_tile, tl.trans(z_tile), input_precision=PRECISION) * scores
            through += tl.sum(tl.where(t[:, None] != s[None, :], products, 0.0), 1)
    token = (b * T + t) * H + h
    written = (t < T)[:, None] & (columns < Z)[None, :]
    tl.store(out + token[:, None] * Z + columns[None, :], near + far, mask=written)
    if GRADIENT == 2:
        through = -through
    if GRADIENT:
        tl.store(partial + tile * (rows_of_all * T) + token, through, mask=t < T)
