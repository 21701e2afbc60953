# mypy: ignore-errors
"""States between the segments of linear attention in Triton: what each segment adds, and their running combination."""

import triton
import triton.language as tl

from zoo_kernels.linear.triton.chunk import UNSPECIALIZED, advance
from zoo_kernels.triton_chunks import head_decay, load, place, state_weights, totals

_NEGLIGIBLE = tl.constexpr(64.0)  # halvings after which a contribution is lost beside any newer one


@triton.jit(do_not_specialize=(*UNSPECIALIZED, "skip"))
def states_kernel(
    y,
    z,
    log_decay,
    documents,
    states,
    factors,
    T: tl.int64,
    H: tl.int64,
    segments: tl.int64,
    segment: tl.int64,
    skip: tl.int64,
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
    KIND: tl.constexpr,
    DOCUMENTS: tl.constexpr,
    REVERSE: tl.constexpr,
    PRECISION: tl.constexpr,
    CHUNK: tl.constexpr,
    TILE_Y: tl.constexpr,
    TILE: tl.constexpr,
):
    """Computes what each segment adds to the state behind it (before it, if REVERSE), and the state's factor.

    The first of the `segments` segments has number `skip`: the state beyond the last one is not the start of any.
    """
    both, part, b, h = place(TILES_Y * TILES, segments, H)
    rows_of_all = tl.num_programs(0).to(tl.int64) // (TILES_Y * TILES * segments)
    tall = both // TILES * TILE_Y + tl.arange(0, TILE_Y)
    columns = both % TILES * TILE + tl.arange(0, TILE)
    y += (b * yb + h * yh) * ALIGN
    z += (b * zb + h * zh) * ALIGN
    first = (part + skip) * segment
    stop = tl.minimum(first + segment, T)
    count = tl.cdiv(stop - first, CHUNK)
    total = tl.zeros((1,), tl.float32)
    skipped = count * 0
    decay = head_decay(log_decay, h, KIND)
    if KIND == 1:  # of a strong decay only the nearest tokens are left
        total += (stop - first).to(tl.float32) * decay
        reach = (1.0 / tl.maximum(-decay, 1e-6) * _NEGLIGIBLE).to(tl.int64) + 1
        skipped = tl.maximum(count - 1 - tl.cdiv(reach, CHUNK), 0)
    state = tl.zeros((TILE_Y, TILE), tl.float32)
    for n in range(skipped, count):
        t0 = first + n * CHUNK
        if REVERSE:
            t0 = first + (count - 1 - n) * CHUNK
        t = t0 + tl.arange(0, CHUNK)
        y_tile = load(y, t, yt * ALIGN, tall, T, Y, TILE_Y * TILES_Y)
        z_tile = load(z, t, zt * ALIGN, columns, T, Z, TILE * TILES)
        chunk, fine, last, last_fine = totals(decay, log_decay, t0, T, b, h, H, CHUNK, KIND)
        query, key, keep = state_weights(chunk, fine, last, last_fine, documents, t0, T, b, scale, CHUNK, DOCUMENTS)
        if REVERSE:
            write = query
        else:
            write = key
        state = advance(state * keep, y_tile, z_tile, write, PRECISION)
        if KIND == 2:
            total += last + last_fine
    slot = part * rows_of_all + b * H + h
    element = tall[:, None] * Z + columns[None, :]
    tl.store(states + slot * (Y * Z) + element, state, mask=(tall < Y)[:, None] & (columns < Z)[None, :])
    factor = tl.exp2(total)
    if DOCUMENTS:
        before = tl.load(documents + b * T + tl.maximum(first - 1, 0))
        factor = tl.where(before == tl.load(documents + b * T + stop - 1), factor, 0.0)
    tl.store(factors + slot + tl.arange(0, 1), factor, mask=both + tl.arange(0, 1) == 0)


@triton.jit(do_not_specialize=["rows", "segments"])
def combine_kernel(
    states,
    factors,
    initial,
    final,
    rows: tl.int64,
    segments: tl.int64,
    SIZE: tl.constexpr,
    PER: tl.constexpr,
    TILES: tl.constexpr,
    REVERSE: tl.constexpr,
    TILE: tl.constexpr,
):
    """Replaces what each segment adds by the state it starts from; `final` is the state beyond all of them.

    PER numbers of a state share a factor: all SIZE, or those of a channel.
    """
    program = tl.program_id(0).to(tl.int64)
    row = program // TILES
    element = program % TILES * TILE + tl.arange(0, TILE)
    inside = element < SIZE
    state = tl.load(initial + row * SIZE + element, mask=inside, other=0.0)
    for n in range(segments):
        part = n
        if REVERSE:
            part = segments - 1 - n
        slot = part * rows + row
        added = tl.load(states + slot * SIZE + element, mask=inside, other=0.0)
        tl.store(states + slot * SIZE + element, state, mask=inside)
        if PER == SIZE:
            factor = tl.load(factors + slot)
        else:
            factor = tl.load(factors + slot * (SIZE // PER) + element // PER, mask=inside, other=0.0)
        state = state * factor + added
    tl.store(final + row * SIZE + element, state, mask=inside)
