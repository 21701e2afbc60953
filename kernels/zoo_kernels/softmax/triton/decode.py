# mypy: ignore-errors
"""One query per row over its cache in Triton: the keys are split over programs, and the parts merged by log-sum-exp.

The query heads of a key head are rows of one tile, so each key and value is read once. How many programs there are
depends on shapes only; each divides the keys that its row really has, so short rows keep all of them busy too.
"""

import triton
import triton.language as tl

from zoo_kernels.softmax.triton.parts import LN2, LOG2E, dot, load_rows, store_rows

_UNSPECIALIZED = "q_batch q_head k_batch k_time k_head v_batch v_time v_head scale capacity window sink_tokens".split()


@triton.jit(do_not_specialize=_UNSPECIALIZED)
def decode_kernel(
    q,
    k,
    v,
    lengths,
    parts,
    part_lse,
    q_batch: tl.int64,
    q_head: tl.int64,
    k_batch: tl.int64,
    k_time: tl.int64,
    k_head: tl.int64,
    v_batch: tl.int64,
    v_time: tl.int64,
    v_head: tl.int64,
    scale,
    capacity: tl.int32,
    window: tl.int32,
    sink_tokens: tl.int32,
    R,
    WIDTH: tl.constexpr,
    VALUE: tl.constexpr,
    WIDTH_BLOCK: tl.constexpr,
    VALUE_BLOCK: tl.constexpr,
    UNIT: tl.constexpr,
    HEADS: tl.constexpr,
    PIECES: tl.constexpr,
    WINDOW: tl.constexpr,
    RING: tl.constexpr,
    KEYS: tl.constexpr,
):
    """Computes output and log-sum-exp (base 2) over one share of the cached keys; 0 and -inf if it has none."""
    split, splits = tl.program_id(0), tl.num_programs(0)
    g, b = tl.program_id(1).to(tl.int64) // PIECES, tl.program_id(2).to(tl.int64)
    head = tl.program_id(1) % PIECES * HEADS  # the first of this program's among those of the key head
    length = tl.load(lengths + b).to(tl.int32)
    held = tl.minimum(length, capacity)
    first = length - window if WINDOW else length * 0
    left, sink_tiles = held * 0, held * 0
    if WINDOW and not RING:
        left = tl.minimum(tl.maximum(first, 0), held) // KEYS * KEYS
        sink_tiles = tl.minimum(tl.cdiv(sink_tokens, KEYS), left // KEYS)
    tiles = sink_tiles + tl.cdiv(held - left, KEYS)
    share = tl.cdiv(tiles, splits)
    q_tile = load_rows(
        q + b * (q_batch * UNIT) + g * R * (q_head * UNIT), head, q_head * UNIT, R, WIDTH, HEADS, WIDTH_BLOCK, True
    )
    k += b * (k_batch * UNIT) + g * (k_head * UNIT)
    v += b * (v_batch * UNIT) + g * (v_head * UNIT)
    accumulator = tl.zeros((HEADS, VALUE_BLOCK), tl.float32)
    total = tl.zeros((HEADS,), tl.float32)
    peak = tl.full((HEADS,), float("-inf"), tl.float32)
    for i in range(split * share, tl.minimum((split + 1) * share, tiles)):
        place = tl.where(i < sink_tiles, i * KEYS, left + (i - sink_tiles) * KEYS)
        slot = place + tl.arange(0, KEYS)
        position = slot
        if RING:
            turn = tl.maximum(capacity - sink_tokens, 1)
            last_turn = tl.maximum(length - 1 - slot, 0) // turn
            position = tl.where(slot < sink_tokens, slot, slot + last_turn * turn)
        seen = slot < held
        if WINDOW:
            seen = seen & ((position >= first) | (position < sink_tokens))
        k_tile = load_rows(k, place, k_time * UNIT, held, WIDTH, KEYS, WIDTH_BLOCK, True)
        score = tl.where(seen[None, :], dot(q_tile, tl.trans(k_tile)) * (scale * LOG2E), float("-inf"))
        highest = tl.maximum(peak, tl.max(score, 1))
        base = tl.where(highest == float("-inf"), 0.0, highest)
        weight = tl.exp2(score - base[:, None])
        shrink = tl.exp2(peak - base)
        total = total * shrink + tl.sum(weight, 1)
        v_tile = load_rows(v, place, v_time * UNIT, held, VALUE, KEYS, VALUE_BLOCK, True)
        accumulator = dot(weight.to(v_tile.dtype), v_tile, accumulator * shrink[:, None])
        peak = highest
    empty = total == 0
    total = tl.where(empty, 1.0, total)
    of_rows = (b * (tl.num_programs(1) // PIECES) + g) * R * splits + split
    stride = splits * VALUE
    store_rows(parts + of_rows * VALUE, accumulator / total[:, None], head, stride, R, VALUE, HEADS, VALUE_BLOCK)
    r = head + tl.arange(0, HEADS)
    value = tl.where(empty, float("-inf"), peak + tl.log2(total))
    tl.store(part_lse + of_rows + r * splits, value, mask=r < R)


@triton.jit(do_not_specialize=["splits"])
def merge_kernel(
    parts,
    part_lse,
    o,
    lse,
    splits: tl.int32,
    VALUE: tl.constexpr,
    VALUE_BLOCK: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """Merges the splits of one head of one row into its output and natural log-sum-exp."""
    row = tl.program_id(1).to(tl.int64) * tl.num_programs(0) + tl.program_id(0)
    columns = tl.arange(0, VALUE_BLOCK)
    accumulator = tl.zeros((VALUE_BLOCK,), tl.float32)
    total = tl.sum(accumulator, 0)
    peak = total - float("inf")
    for start in range(0, splits, SPLITS):
        i = start + tl.arange(0, SPLITS)
        logit = tl.load(part_lse + row * splits + i, mask=i < splits, other=float("-inf"))
        inside = (i < splits)[:, None] & (columns < VALUE)[None, :]
        part = tl.load(parts + (row * splits + i)[:, None] * VALUE + columns[None, :], mask=inside, other=0.0)
        highest = tl.maximum(peak, tl.max(logit, 0))
        base = tl.where(highest == float("-inf"), 0.0, highest)
        weight = tl.exp2(logit - base)
        shrink = tl.exp2(peak - base)
        total = total * shrink + tl.sum(weight, 0)
        accumulator = accumulator * shrink + tl.sum(weight[:, None] * part, 0)
        peak = highest
    empty = total == 0
    total = tl.where(empty, 1.0, total)
    tl.store(o + row * VALUE + columns, (accumulator / total).to(o.dtype.element_ty), mask=columns < VALUE)
    tl.store(lse + row, tl.where(empty, float("-inf"), (peak + tl.log2(total)) * LN2))
