# mypy: ignore-errors
"""Pairs of readers and writers under a decay per channel in Triton, for the families that have one.

Between reader i and writer j <= i of a chunk channel d keeps ``exp(g_{j+1} + .. + g_i)_d``, which does not factor into
one number of i and one of j that are both at most 1. Hence a chunk is cut into blocks of tokens. A reader meets the
writers of earlier blocks at the beginning of its own: it has kept ``exp2(since(..))`` from there, they ``exp2(until(..,
begin, ..))`` to there. Inside a block the right half meets the left half in the same way, then the halves of each half,
down to neighbors.

All sums are of numbers <= 0 of the pair's own tokens: nothing cancels, nothing overflows, no output depends on a later
decay, and a decay of -1000 at the first token of a document hides all that is before it. Exponents are in base 2.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
FORGOTTEN = tl.constexpr(-1442.6950408889634)  # chunks.FORGOTTEN in base 2


@triton.jit
def load_decays(log_decay, documents, t, columns, b, h, T, H, WIDTH: tl.constexpr, DOCUMENTS: tl.constexpr):
    """Loads log decays (base 2) of tokens ``t`` from ``(B, T, H, WIDTH)``; 0 beyond T and beyond WIDTH."""
    pointers = log_decay + ((b * T + t) * H + h)[:, None] * WIDTH + columns[None, :]
    decays = tl.load(pointers, mask=(t < T)[:, None] & (columns < WIDTH)[None, :], other=0.0).to(tl.float32)
    decays = tl.maximum(tl.minimum(decays, 0.0) * LOG2E, FORGOTTEN)
    if DOCUMENTS:
        now = tl.load(documents + b * T + t, mask=t < T, other=0)
        before = tl.load(documents + b * T + tl.maximum(t - 1, 0), mask=t < T, other=0)
        decays = tl.where((now != before)[:, None], FORGOTTEN, decays)
    return decays


@triton.jit
def since(decays):
    """Sums from the first row up to and with each row: what a reader keeps of all before the rows."""
    return tl.cumsum(decays, 0)


@triton.jit
def until(log_decay, documents, t, end, columns, b, h, T, H, WIDTH: tl.constexpr, DOCUMENTS: tl.constexpr):
    """Sums behind each token ``t`` up to token ``end``, without it: what a writer keeps until there."""
    following = load_decays(log_decay, documents, t + 1, columns, b, h, T, H, WIDTH, DOCUMENTS)
    return tl.cumsum(tl.where((t + 1 < end)[:, None], following, 0.0), 0, reverse=True)


@triton.jit
def halves(decays, following, HALF: tl.constexpr):
    """Weights of readers in right halves, from the beginning of theirs, and of writers in left halves, to its end."""
    ROWS: tl.constexpr = decays.shape[0]
    WIDTH: tl.constexpr = decays.shape[1]
    cut: tl.constexpr = (ROWS // HALF, HALF, WIDTH)
    inner = ((tl.arange(0, ROWS) % HALF) < HALF - 1)[:, None]
    read = tl.cumsum(tl.reshape(decays, cut), 1)
    write = tl.cumsum(tl.reshape(tl.where(inner, following, 0.0), cut), 1, reverse=True)
    return tl.exp2(tl.reshape(read, (ROWS, WIDTH))), tl.exp2(tl.reshape(write, (ROWS, WIDTH)))


@triton.jit
def meeting(ROWS: tl.constexpr, HALF: tl.constexpr):
    """Which reader in row i, of a right half, meets which writer in column j, of the left half of the same pair."""
    i = tl.arange(0, ROWS)
    right, left = i // HALF % 2 == 1, i // HALF % 2 == 0
    same = (i // (2 * HALF))[:, None] == (i // (2 * HALF))[None, :]
    return same & right[:, None] & left[None, :]


@triton.jit
def diagonal_pairs(x, y, decays, following, OWN: tl.constexpr, PRECISION: tl.constexpr):
    """Computes ``sum_d x_id y_jd exp2(decays_{j+1} + .. + decays_i)_d`` for j < i, or j <= i if OWN, else 0.

    Args:
        x: readers ``(ROWS, D)``, fp32, of a block of 16 tokens or another power of 2.
        y: writers ``(ROWS, D)`` of the same tokens, fp32.
        decays: their log decays ``(ROWS, D)``.
        following: the log decays of the next tokens ``(ROWS, D)``, of which the last is not used.
        OWN: a reader meets the writer of its own token.
        PRECISION: ``ieee`` or ``tf32``.
    """
    ROWS: tl.constexpr = x.shape[0]
    i = tl.arange(0, ROWS)
    found = tl.zeros((ROWS, ROWS), tl.float32)
    for level in tl.static_range(10):
        if 1 << level < ROWS:
            read, write = halves(decays, following, 1 << level)
            pairs = tl.dot(x * read, tl.trans(y * write), input_precision=PRECISION)
            found = tl.where(meeting(ROWS, 1 << level), pairs, found)
    if OWN:
        found = tl.where(i[:, None] == i[None, :], tl.sum(x * y, 1)[:, None], found)
    return found


@triton.jit
def diagonal_gradients(x, y, decays, following, grad, PRECISION: tl.constexpr):
    """Gradients of x and y of :func:`diagonal_pairs` from that of its pairs j < i ``(ROWS, ROWS)``."""
    ROWS: tl.constexpr = x.shape[0]
    to_x, to_y = tl.zeros_like(x), tl.zeros_like(y)
    for level in tl.static_range(10):
        if 1 << level < ROWS:
            read, write = halves(decays, following, 1 << level)
            part = tl.where(meeting(ROWS, 1 << level), grad, 0.0)
            to_x += tl.dot(part, y * write, input_precision=PRECISION) * read
            to_y += tl.dot(tl.trans(part), x * read, input_precision=PRECISION) * write
    return to_x, to_y
