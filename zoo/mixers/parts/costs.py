"""Closed-form costs that several mixers share; FLOPs count a multiply and an add as two."""

from __future__ import annotations

import torch

CHUNK = 64  # of the linear kernels
DELTA_CHUNK = 32  # of those of the delta rule


class HeadSizes:
    """Sizes of the heads of softmax attention, and what follows from them for pairs and tokens.

    Attributes:
        heads: number of query heads.
        kv_heads: number of key and value heads.
        head_dim: width of queries and keys.
        value_dim: width of values.
    """

    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int

    @property
    def pair_flops(self) -> int:
        """FLOPs of a query-key pair in all heads: score and weighted value."""
        return 2 * self.heads * (self.head_dim + self.value_dim)

    @property
    def token_numbers(self) -> int:
        """Numbers of the keys and values of a token, in all key heads."""
        return self.kv_heads * (self.head_dim + self.value_dim)


def linear_flops(heads: int, key_width: int, value_width: int, context: int, algorithm: str = "auto") -> float:
    """FLOPs per token of linear attention: the lower half of each chunk's products, and a write and read of the state.

    Normalized attention appends a column of ones to the values: ``value_width`` is then one more. With the algorithm
    ``parallel`` all tokens are one chunk.
    """
    chunk = context if algorithm == "parallel" else CHUNK
    full, rest = divmod(context, chunk)
    pairs = full * chunk * (chunk + 1) // 2 + rest * (rest + 1) // 2
    through_state = 4 * heads * key_width * value_width
    return through_state + 2 * pairs * heads * (key_width + value_width) / context


def linear_step_flops(heads: int, key_width: int, value_width: int, normalize: bool = False) -> float:
    """FLOPs of one token of decoding: one write and read of the state, and the update of a normalizer."""
    return heads * key_width * (4 * value_width + 2 * normalize)


def state_bytes(heads: int, key_width: int, value_width: int, dtype: torch.dtype) -> int:
    """Bytes of a state, which is in fp32 or better; for a normalized one, ``value_width`` is one more."""
    return heads * key_width * value_width * max(dtype.itemsize, torch.float32.itemsize)


def window_pairs(context: int, window: int, first: int = 0, block: int = 1) -> int:
    """Number of query-key pairs of a causal window and of the ``first`` tokens, the query's own key included.

    With ``block`` over 1, whole blocks of so many queries and keys are counted, and of those on the diagonal the lower
    half: what a kernel that works on blocks computes.
    """
    if block > 1:
        return sum(_strip(start, context, window, first, block) for start in range(0, context, block))
    short = min(context, window + first)
    return short * (short + 1) // 2 + (context - short) * (window + first)


def _strip(start: int, context: int, window: int, first: int, block: int) -> int:
    """Pairs of the block of queries at ``start``."""
    own, oldest, rows = start // block, max(start - window + 1, 0) // block, min(block, context - start)
    others = own - oldest + min(-(-first // block), oldest)
    return rows * block * others + rows * (rows + 1) // 2


def delta_flops(
    heads: int,
    key_width: int,
    value_width: int,
    context: int,
    *,
    erases: bool = True,
    general: bool = False,
    by_channel: bool = False,
) -> float:
    """FLOPs per token of delta attention, of each chunk the lower half of its products, its system and its states.

    Args:
        heads: value heads.
        key_width: numbers D of a key.
        value_width: numbers E of a value.
        context: tokens of the sequence.
        erases: whether anything is erased, which takes a second reader of a token and a system.
        general: whether reads and erases are given by themselves, which makes two writers of a token.
        by_channel: whether each channel decays by itself: a chunk then has as many tokens as halves need.
    """
    full, rest = divmod(context, DELTA_CHUNK)
    sizes = key_width, value_width, 1 + erases, 1 + general, by_channel
    of_chunk, last = _delta_chunk(DELTA_CHUNK, *sizes), _delta_chunk(rest, *sizes) if rest else 0
    return 2 * heads * (full * of_chunk + last) / context


def _delta_chunk(tokens: int, key_width: int, value_width: int, readers: int, writers: int, by_channel: bool) -> int:
    """Products of a chunk of delta attention: of pairs, of the system and the outputs, and with the states."""
    rows = 1 << (tokens - 1).bit_length() if by_channel else tokens
    lower = rows * (rows + 1) // 2
    of_pairs = readers * (lower - rows) if by_channel else readers * lower - (readers - 1) * rows
    products = writers * (key_width * of_pairs + readers * value_width * lower)
    system = rows**3 // 3 if readers > 1 else 0
    return products + system + (readers + writers) * rows * key_width * value_width


def delta_step_flops(heads: int, key_width: int, value_width: int, general: bool = False) -> float:
    """FLOPs of one token of decoding: the state read by the key and by the query, and written.

    The delta rule writes it once, its general form, which erases at one place and writes at another, twice.
    """
    return (8 if general else 6) * heads * key_width * value_width
