# mypy: ignore-errors
"""What the Triton kernels of delta attention share: products, rows of arrays, and the weights of decays per channel.

All arrays of tokens are contiguous ``(B, T, heads, X)``. Numbers of 16 bits are multiplied as TF32, which holds them
exactly and what becomes of them with the range of fp32: a chunk's system adds up what bf16 would round, and fp16 has
not its range. Products of fp32 are those of fp32.
"""

import triton
import triton.language as tl

from zoo_kernels.triton_chunks import LOG2E

UNSPECIALIZED = ("T", "H", "chunks", "QH", "PH", "YH", "levels", "scale")  # none of these may cause a new compilation
SMALLEST = tl.constexpr(-160.0)  # a log decay (base 2) that is 0 as a factor


@triton.jit
def product(a, b, PRECISION: tl.constexpr):
    """Returns ``a @ b`` in fp32."""
    return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision=PRECISION)


@triton.jit
def exact(a, b, PRECISION: tl.constexpr):
    """Returns ``a @ b`` to the precision of fp32."""
    if PRECISION == "ieee":
        return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
    else:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="tf32x3")


@triton.jit
def summed(which, x, PRECISION: tl.constexpr):
    """Sums rows of x where ``which`` is 1 and not 0, to the precision of fp32."""
    if PRECISION == "ieee":
        return tl.dot(which, x, input_precision="ieee")
    else:  # in two parts, each of which TF32 has
        high = (x.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)
        return tl.dot(which, x - high, acc=tl.dot(which, high, input_precision="tf32"), input_precision="tf32")


@triton.jit
def rows_of(x, b, t, h, H, columns, T, WIDTH: tl.constexpr, PADDED: tl.constexpr):
    """Loads tokens ``t`` of head ``h``; zeros beyond T and beyond WIDTH."""
    inside = (t < T)[:, None]
    if PADDED != WIDTH:
        inside = inside & (columns < WIDTH)[None, :]
    return tl.load(x + ((b * T + t) * H + h)[:, None] * WIDTH + columns[None, :], mask=inside, other=0.0)


@triton.jit
def store_rows(x, tile, b, t, h, H, columns, T, WIDTH: tl.constexpr):
    """Stores tokens ``t`` of head ``h`` where there are such."""
    pointers = x + ((b * T + t) * H + h)[:, None] * WIDTH + columns[None, :]
    tl.store(pointers, tile, mask=(t < T)[:, None] & (columns < WIDTH)[None, :])


@triton.jit
def channel_decay(
    log_decay, documents, b, t, h, H, columns, T, WIDTH: tl.constexpr, PADDED: tl.constexpr, DOCUMENTS: tl.constexpr
):
    """Loads log decays (base 2) per channel, 0 beyond T; the first token of a document forgets all."""
    decay = rows_of(log_decay, b, t, h, H, columns, T, WIDTH, PADDED).to(tl.float32) * LOG2E
    decay = tl.minimum(tl.maximum(decay, SMALLEST), 0.0)
    if DOCUMENTS:
        decay = tl.where(starts(documents, b, t, T)[:, None], SMALLEST, decay)
    return decay


@triton.jit
def starts(documents, b, t, T):
    """Returns whether tokens are the first of a document, the row's first one aside."""
    ids = tl.load(documents + b * T + t, mask=t < T, other=0)
    before = tl.load(documents + b * T + tl.maximum(t - 1, 0), mask=t < T, other=0)
    return (ids != before) & (t < T)


@triton.jit
def level_weights(decay, level, PRECISION: tl.constexpr, CHUNK: tl.constexpr):
    """Weights of each token at a level of halves of ``2 ** level`` tokens; no exponent is positive.

    In a right half: what is kept from its beginning until the token. In a left half: from the token to its end. The
    sums begin at the border of the halves, as products with zeros and ones.
    """
    i = tl.arange(0, CHUNK)
    right = ((i >> level) & 1) == 1
    same = (i[:, None] >> level) == (i[None, :] >> level)
    passed = tl.where(right[:, None], i[None, :] <= i[:, None], i[None, :] > i[:, None])
    weights = tl.exp2(tl.minimum(summed((same & passed).to(tl.float32), decay, PRECISION), 0.0))
    return weights, right


@triton.jit
def pairs_of_level(level, CHUNK: tl.constexpr):
    """Returns which pairs of a row in a right half and a column in the left half beside it a level is about."""
    i = tl.arange(0, CHUNK)
    right = ((i >> level) & 1) == 1
    return right[:, None] & ~right[None, :] & ((i[:, None] >> (level + 1)) == (i[None, :] >> (level + 1)))


@triton.jit
def chunk_weights(decay, after):
    """Weights per channel with which tokens read the state before and write the one after a chunk, and its own.

    after: the decays of the next tokens of the chunk, 0 for its last one.
    """
    return tl.exp2(tl.cumsum(decay, 0)), tl.exp2(tl.cumsum(after, 0, reverse=True)), tl.exp2(tl.sum(decay, 0))
