# mypy: ignore-errors
"""Device functions that the Triton kernels share: loads, the token rule, and which tiles a tile reads.

Positions are absolute: query row i stands at i + offset, and tiles start at multiples of their size. A program has two
loops, over tiles in which every pair is allowed and over tiles that check each pair. The second runs through up to
three stretches (sinks, left edge, right edge) under one counter, so that a tile's code is compiled only twice.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
UNSPECIALIZED = (  # what may depend on the batch or on the length: a change of either must not compile again
    "q_batch q_time q_head k_batch k_time k_head v_batch v_time v_head g_batch g_time g_head l_batch l_time l_head "
    "scale offset Tq Tk window sink_tokens rows columns list_batch list_head bias_batch bias_head "
    "H"  # not of these, but one head would be a constant, which is no tensor
).split()


@triton.jit
def dot(x, y, accumulator=None):
    """Matrix product in fp32; fp32 operands are not rounded to tf32."""
    return tl.dot(x, y, accumulator, input_precision="ieee")


@triton.jit
def load_rows(
    base, first, stride, count, WIDTH: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, CHECK: tl.constexpr
):
    """Loads rows ``first ... first + ROWS`` as a (ROWS, BLOCK) tile.

    Numbers beyond WIDTH and, if CHECK, rows outside 0 ... count are 0.
    """
    rows, columns = tl.arange(0, ROWS), tl.arange(0, BLOCK)
    pointers = base + first.to(tl.int64) * stride + (rows[:, None] * stride.to(tl.int32) + columns[None, :])
    if CHECK:
        inside = ((first + rows >= 0) & (first + rows < count))[:, None]
        if BLOCK != WIDTH:
            inside = inside & (columns < WIDTH)[None, :]
        return tl.load(pointers, mask=inside, other=0.0)
    if BLOCK != WIDTH:
        return tl.load(pointers, mask=(columns < WIDTH)[None, :], other=0.0)
    return tl.load(pointers)


@triton.jit
def store_rows(base, value, first, stride, count, WIDTH: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Stores a tile of rows, leaving out those outside 0 ... count; inverse of a checked :func:`load_rows`."""
    rows, columns = tl.arange(0, ROWS), tl.arange(0, BLOCK)
    pointers = base + first.to(tl.int64) * stride + (rows[:, None] * stride.to(tl.int32) + columns[None, :])
    inside = ((first + rows >= 0) & (first + rows < count))[:, None] & (columns < WIDTH)[None, :]
    tl.store(pointers, value.to(base.dtype.element_ty), mask=inside)


@triton.jit
def readable_from(t, starts, Tk, window, WINDOW: tl.constexpr, DOCUMENTS: tl.constexpr):
    """Returns the start of each query's document, and the first key that its window and document leave it."""
    start = t * 0
    if DOCUMENTS:
        start = tl.load(starts + t, mask=t < Tk, other=0)
    if WINDOW:
        return start, tl.maximum(start, t - window + 1)
    return start, start


@triton.jit
def read_until(
    j, starts, ends, Tk, window, sink_tokens, WINDOW: tl.constexpr, SINKS: tl.constexpr, DOCUMENTS: tl.constexpr
):
    """Returns the position after the last query that may read each key; 0 for keys beyond the end."""
    start, end = j * 0, j * 0 + Tk
    if DOCUMENTS:
        start = tl.load(starts + j, mask=j < Tk, other=0)
        end = tl.load(ends + j, mask=j < Tk, other=0)
    until = end
    if WINDOW:
        until = tl.minimum(end, j + window)
        if SINKS:
            until = tl.where(j - start < sink_tokens, end, until)
    return tl.where(j < Tk, until, 0)


@triton.jit
def may_read(t, j, start, low, sink_tokens, SINKS: tl.constexpr, BOUND: tl.constexpr):
    """Returns whether query t, whose document begins at ``start`` and whose reach at ``low``, may read key j."""
    near = j <= t
    if SINKS:
        return near & ((j >= low) | ((j >= start) & (j < start + sink_tokens)))
    if BOUND:
        return near & (j >= low)
    return near


@triton.jit
def is_set(t, j, mask, bits, LAYOUT: tl.constexpr):
    """Returns the bit of query t and key j in the mask of a partial block; a negative ``mask`` hides nothing."""
    words: tl.constexpr = (LAYOUT + 31) // 32
    words_of_mask = bits + mask.to(tl.int64) * (LAYOUT * words)
    column = j % LAYOUT
    word = tl.load(words_of_mask + ((t % LAYOUT) * words + column // 32), mask=mask >= 0, other=-1)
    return ((word >> (column % 32)) & 1) != 0


@triton.jit
def key_tiles(
    first,
    offset,
    Tk,
    window,
    sink_tokens,
    starts,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    WINDOW: tl.constexpr,
    SINKS: tl.constexpr,
    DOCUMENTS: tl.constexpr,
):
    """Returns the key tiles of the query tile at ``first``; see :func:`checked_place` for what the numbers mean."""
    last = tl.minimum(first + QUERIES, Tk)
    top = tl.maximum(first, offset)
    begin = top * 0
    low = begin
    high = first
    if DOCUMENTS:
        begin = tl.load(starts + top)
        low = begin
        high = tl.where(tl.load(starts + last - 1) == begin, high, 0)
    near = begin
    if WINDOW:
        near = tl.maximum(begin, top - window + 1)
        low = tl.maximum(low, last - window)
    left = near // KEYS * KEYS
    end = tl.cdiv(last, KEYS) * KEYS
    low = tl.minimum(tl.maximum(tl.cdiv(low, KEYS) * KEYS, left), end)
    high = tl.maximum(high // KEYS * KEYS, low)
    sink = begin // KEYS * KEYS
    sink_tiles = begin * 0
    if SINKS:
        sink_tiles = tl.maximum(tl.minimum(tl.cdiv(begin + sink_tokens, KEYS) * KEYS, left) - sink, 0) // KEYS
    return sink, sink_tiles, left, low, high, end


@triton.jit
def query_tiles(
    first,
    until,
    offset,
    Tk,
    window,
    starts,
    ends,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    WINDOW: tl.constexpr,
    DOCUMENTS: tl.constexpr,
):
    """Returns the query tiles of the key tile at ``first``: (left, low, high, end) as in :func:`key_tiles`."""
    last = tl.minimum(first + KEYS, Tk)
    unchecked_end = Tk
    if DOCUMENTS:
        same = tl.load(starts + first) == tl.load(starts + last - 1)
        unchecked_end = tl.where(same, tl.load(ends + first), 0)
    if WINDOW:
        unchecked_end = tl.minimum(unchecked_end, first + window)
    left = tl.maximum(first, offset) // QUERIES * QUERIES
    end = tl.maximum(tl.cdiv(tl.max(until, 0), QUERIES) * QUERIES, left)
    low = tl.minimum(tl.cdiv(tl.maximum(last - 1, offset), QUERIES) * QUERIES, end)
    high = tl.maximum(tl.minimum(unchecked_end // QUERIES * QUERIES, end), low)
    return left, low, high, end


@triton.jit
def checked_place(i, sink, sink_tiles, left, low, high, TILE: tl.constexpr):
    """Start of the i-th checked tile: ``sink_tiles`` from sink, then left ... low, then from high on."""
    edge = tl.where(i < sink_tiles, sink + i * TILE, left + (i - sink_tiles) * TILE)
    before = sink_tiles + (low - left) // TILE
    return tl.where(i < before, edge, high + (i - before) * TILE)


@triton.jit
def listed_row(offsets, full, row, rows, b, h, list_batch, list_head, TILES: tl.constexpr):
    """Returns the first entry of a layout's row, and its numbers of unchecked and checked tiles; TILES per block."""
    place = b * list_batch + h * list_head
    begin = tl.load(offsets + place * (rows + 1) + row)
    entries = tl.load(offsets + place * (rows + 1) + row + 1) - begin
    unchecked = tl.load(full + place * rows + row)
    return begin, unchecked * TILES, (entries - unchecked) * TILES


@triton.jit
def listed_place(i, begin, blocks, BLOCK: tl.constexpr, TILE: tl.constexpr):
    """Returns entry and start of the i-th tile of a layout's row whose first entry is ``begin``."""
    tiles: tl.constexpr = BLOCK // TILE
    entry = begin + i // tiles
    return entry, tl.load(blocks + entry) * BLOCK + i % tiles * TILE


@triton.jit
def bias_of(bias, column, BIAS: tl.constexpr):
    """Loads the additive logit of a block pair in base 2; 0 without a bias."""
    if BIAS:
        return tl.load(bias + column) * LOG2E
    return 0.0
