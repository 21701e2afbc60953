# mypy: ignore-errors
"""Linear attention in Triton: one kernel for the output and for all three gradients.

With W the weight of a pair (0 above the diagonal), r, w the weights with which a token reads and writes the state and a
that of the state itself, a chunk of tokens computes

    mix(x, y, z):   out = ((x y^T) * W) z + r (x S),   S <- a S + y^T (w z)

and  o = mix(q, k, v),  dq = mix(do, v, k) with S transposed; running backwards in time, with R the gradient of the
state in place of S:  dv = mix(k, q, do),  dk = mix(v, do, q) with R transposed. A sequence is cut into segments, as
many as the GPU needs programs: `states` sums each segment's own, `combine` runs over them, `mix` starts from there.

Traffic of one head's token, each array read once per kernel (the column tiles of one segment run side by side and share
the cache), in units of one row of D = E numbers:
    forward   one segment: q k v o = 4 of 4 (1.0x);
              of S segments: states k v of all but the last, mix q k v o = 6 - 2 / S (< 1.5x)
    backward  one segment: dq (do v k dq), dv (k q do dv), dk (v do q dk) = 12 of 7 (1.7x);
              of S segments: states q do of all but the first = 14 - 2 / S (< 2.0x)
The fp32 states of several segments come on top, 4 S of them forward. custom.py cuts so that all stays within 1.5x and
2.0x with them, unless the GPU would then have fewer programs than multiprocessors: test_linear_traffic.py counts.
Exponents are in base 2 and never positive; sums and states are fp32; offsets are 64 bits wide.
"""

import triton
import triton.language as tl

from zoo_kernels.triton_chunks import head_decay, load, pair_weights, place, state_weights, totals

# Neither these nor the strides may cause a new compilation: alignment is told by ALIGN.
UNSPECIALIZED = ("T", "H", "segments", "segment", "scale", *(f"{array}{axis}" for array in "xyzo" for axis in "bth"))


@triton.jit
def advance(state, y_tile, z_tile, write, PRECISION: tl.constexpr):
    """Returns the state plus y^T (w z)."""
    if z_tile.dtype == tl.float16:  # whose smallest number is 6e-8: the weights are taken relative to their largest
        largest = tl.maximum(tl.max(tl.abs(write), 0), 1e-30)
        weighted = (z_tile * (write / largest)[:, None]).to(z_tile.dtype)
        state += tl.dot(tl.trans(y_tile), weighted, input_precision=PRECISION) * largest
    else:
        weighted = (z_tile * write[:, None]).to(z_tile.dtype)
        state = tl.dot(tl.trans(y_tile), weighted, acc=state, input_precision=PRECISION)
    return state


@triton.jit
def read_state(x_tile, state, PRECISION: tl.constexpr):
    """Returns the product of x and the state."""
    if x_tile.dtype == tl.float16:  # whose largest number is 65504: columns are taken relative to their largest
        largest = tl.maximum(tl.max(tl.abs(state), 0), 1e-30)
        relative = (state / largest[None, :]).to(x_tile.dtype)
        return tl.dot(x_tile, relative, input_precision=PRECISION) * largest[None, :]
    else:
        return tl.dot(x_tile, state.to(x_tile.dtype), input_precision=PRECISION)


@triton.jit
def weigh(scores, z_tile, PRECISION: tl.constexpr):
    """Returns the product of the weighted scores and z."""
    if z_tile.dtype == tl.float16:  # rows are taken relative to their largest
        largest = tl.maximum(tl.max(tl.abs(scores), 1), 1e-30)
        relative = (scores / largest[:, None]).to(z_tile.dtype)
        return tl.dot(relative, z_tile, input_precision=PRECISION) * largest[:, None]
    else:
        return tl.dot(scores.to(z_tile.dtype), z_tile, input_precision=PRECISION)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def mix_kernel(
    x,
    y,
    z,
    out,
    own,
    log_decay,
    documents,
    starts,
    final,
    partial,
    T: tl.int64,
    H: tl.int64,
    segments: tl.int64,
    segment: tl.int64,
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
    FINAL: tl.constexpr,
    GRADIENT: tl.constexpr,
    PRECISION: tl.constexpr,
    CHUNK: tl.constexpr,
    TILE: tl.constexpr,
):
    """Computes out (B, T, H, Z) from x, y (.., X) and z (.., Z); strides are in units of ALIGN numbers.

    starts: state before each segment (after it, if REVERSE), (segments, B, H, X, Z), or (.., Z, X) if TRANSPOSED.
    GRADIENT 1 (own = q, out = dq) and 2 (own = k, out = dk): what token t adds to the gradient of the log decay of
    every token up to its own, (TILES, B, T, H).
    """
    tile, part, b, h = place(TILES, segments, H)
    rows_of_all = tl.num_programs(0).to(tl.int64) // (TILES * segments)
    columns = tile * TILE + tl.arange(0, TILE)
    wide = tl.arange(0, X_PADDED)
    x += (b * xb + h * xh) * ALIGN
    y += (b * yb + h * yh) * ALIGN
    z += (b * zb + h * zh) * ALIGN
    if TRANSPOSED:
        element = columns[None, :] * X + wide[:, None]
    else:
        element = wide[:, None] * Z + columns[None, :]
    held = (wide < X)[:, None] & (columns < Z)[None, :]
    row = b * H + h
    state = tl.load(starts + (part * rows_of_all + row) * (X * Z) + element, mask=held, other=0.0)
    first = part * segment
    count = tl.cdiv(tl.minimum(segment, T - first), CHUNK)
    decay = head_decay(log_decay, h, KIND)
    if KIND < 2:  # the same for every chunk
        total, fine, _, _ = totals(decay, log_decay, first, T, b, h, H, CHUNK, KIND)
        pair = pair_weights(total, fine, scale, CHUNK, REVERSE)
    for n in range(count):
        t0 = first + n * CHUNK
        if REVERSE:
            t0 = first + (count - 1 - n) * CHUNK
        t = t0 + tl.arange(0, CHUNK)
        x_tile = load(x, t, xt * ALIGN, wide, T, X, X_PADDED)
        y_tile = load(y, t, yt * ALIGN, wide, T, X, X_PADDED)
        z_tile = load(z, t, zt * ALIGN, columns, T, Z, TILE * TILES)
        total, fine, last, last_fine = totals(decay, log_decay, t0, T, b, h, H, CHUNK, KIND)
        query, key, keep = state_weights(total, fine, last, last_fine, documents, t0, T, b, scale, CHUNK, DOCUMENTS)
        if KIND == 2:
            pair = pair_weights(total, fine, scale, CHUNK, REVERSE)
        if REVERSE:
            read, write = key, query
        else:
            read, write = query, key
        scores = tl.dot(x_tile, tl.trans(y_tile), input_precision=PRECISION) * pair
        if DOCUMENTS:
            ids = tl.load(documents + b * T + t, mask=t < T, other=0)
            scores = tl.where(ids[:, None] == ids[None, :], scores, 0.0)
        near = weigh(scores, z_tile, PRECISION)
        far = read_state(x_tile, state, PRECISION) * read[:, None]
        written = (t < T)[:, None] & (columns < Z)[None, :]
        token = (b * T + t) * H + h
        tl.store(out + token[:, None] * Z + columns[None, :], near + far, mask=written)
        state = advance(state * keep, y_tile, z_tile, write, PRECISION)
        if GRADIENT:
            own_tile = load(own + (b * ob + h * oh) * ALIGN, t, ot * ALIGN, columns, T, Z, TILE * TILES)
            through = tl.sum(own_tile * far, 1)
            if GRADIENT == 1:
                products = tl.dot(own_tile, tl.trans(z_tile), input_precision=PRECISION) * scores
                i = tl.arange(0, CHUNK)
                products = tl.where(i[:, None] > i[None, :], products, 0.0)  # a token's own key passes over no decay
                through += tl.sum(products, 1) - tl.sum(products, 0)
            else:
                through = -through
            tl.store(partial + tile * (rows_of_all * T) + token, through, mask=t < T)
    if FINAL:  # where the sequence ends, or begins if REVERSE
        ends = first == 0 if REVERSE else first + segment >= T
        if ends:
            tl.store(final + row * (X * Z) + element, state, mask=held)
