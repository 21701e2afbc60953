# mypy: ignore-errors
"""What the Triton kernels over chunks share: places, loads, weights from decays per head and from documents."""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def load(base, rows, stride, columns, T, WIDTH: tl.constexpr, PADDED: tl.constexpr):
    """Loads rows ``rows`` of an array whose token 0 is at ``base``; zeros beyond T and beyond WIDTH."""
    pointers = base + rows.to(tl.int64)[:, None] * stride + columns[None, :]
    inside = (rows < T)[:, None]
    if PADDED != WIDTH:
        inside = inside & (columns < WIDTH)[None, :]
    return tl.load(pointers, mask=inside, other=0.0)


@triton.jit
def head_decay(log_decay, h, KIND: tl.constexpr):
    """Loads the log decay (base 2) of a head; 0 where heads have none, or one for each token."""
    if KIND == 1:
        decay = tl.load(log_decay + h) * LOG2E
    else:
        decay = (h * 0).to(tl.float32)
    return decay


@triton.jit
def totals(decay, log_decay, t0, T, b, h, H, CHUNK: tl.constexpr, KIND: tl.constexpr):
    """Computes the running sum of a chunk's log decays (base 2) in two parts, and its last value."""
    i = tl.arange(0, CHUNK)
    if KIND == 2:
        of_tokens = tl.load(log_decay + (b * T + t0 + i) * H + h, mask=t0 + i < T, other=0.0) * LOG2E
        of_tokens = tl.maximum(of_tokens, -160.0)  # 0 as a factor, and a sum of such stays within 24 bits
        coarse = (of_tokens * 512.0).to(tl.int32).to(tl.float32) / 512.0  # sums of these are exact
        rest = of_tokens - coarse
        total = tl.cumsum(coarse, 0)
        fine = tl.cumsum(rest, 0)
        last = tl.sum(coarse, 0)
        last_fine = tl.sum(rest, 0)
    else:
        total = (i + 1).to(tl.float32) * decay
        last = tl.minimum(T - t0, CHUNK).to(tl.float32) * decay
        fine = total * 0.0
        last_fine = last * 0.0
    return total, fine, last, last_fine


@triton.jit
def state_weights(
    total, fine, last, last_fine, documents, t0, T, b, scale, CHUNK: tl.constexpr, DOCUMENTS: tl.constexpr
):
    """Weights with which tokens read the state before and write the one after a chunk, and its own factor."""
    query = tl.exp2(total + fine) * scale
    key = tl.exp2(tl.minimum((last - total) + (last_fine - fine), 0.0))
    state = tl.exp2(last + last_fine)
    if DOCUMENTS:
        t = t0 + tl.arange(0, CHUNK)
        ids = tl.load(documents + b * T + t, mask=t < T, other=0)
        before = tl.load(documents + b * T + tl.maximum(t0 - 1, 0))
        final = tl.load(documents + b * T + tl.minimum(t0 + CHUNK, T) - 1)
        query = tl.where(ids == before, query, 0.0)
        key = tl.where(ids == final, key, 0.0)
        state = tl.where(final == before, state, 0.0)
    return query, key, state


@triton.jit
def pair_weights(total, fine, scale, CHUNK: tl.constexpr, REVERSE: tl.constexpr):
    """Weight of key j for query i, in row i and column j; transposed if REVERSE."""
    i = tl.arange(0, CHUNK)
    if REVERSE:
        exponent = (total[None, :] - total[:, None]) + (fine[None, :] - fine[:, None])
        allowed = i[None, :] >= i[:, None]
    else:
        exponent = (total[:, None] - total[None, :]) + (fine[:, None] - fine[None, :])
        allowed = i[:, None] >= i[None, :]
    return tl.where(allowed, tl.exp2(tl.minimum(exponent, 0.0)) * scale, 0.0)


@triton.jit
def place(TILES: tl.constexpr, segments, H):
    """Returns column tile, segment, batch row and head of this program; tiles of one segment are neighbors."""
    program = tl.program_id(0).to(tl.int64)
    row = program // (TILES * segments)
    return program % TILES, (program // TILES) % segments, row // H, row % H
