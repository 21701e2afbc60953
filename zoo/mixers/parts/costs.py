"""Closed forms that mixers of one family share; FLOPs count a multiply and an add as two."""

from __future__ import annotations

import torch

CHUNK = 64  # of the linear kernels


class HeadSizes:
    """What the sizes of softmax attention's heads make of a pair of tokens and of a token.

    Attributes:
        heads, kv_heads: heads of queries, and of keys and values.
        head_dim, value_dim: numbers of each query and key, and of each value.
    """

    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int

    @property
    def pair_flops(self) -> int:
        """FLOPs of both products of a query and a key, in all heads."""
        return 2 * self.heads * (self.head_dim + self.value_dim)

    @property
    def token_numbers(self) -> int:
        """Numbers of the keys and values of a token."""
        return self.kv_heads * (self.head_dim + self.value_dim)


def linear_flops(heads: int, key_width: int, value_width: int, context: int, algorithm: str = "auto") -> float:
    """FLOPs per token of linear attention: the lower half of each chunk's products, the state written and read once.

    Normalized attention appends a column of ones to the values: ``value_width`` is then one more. All tokens are one
    chunk if ``algorithm`` is ``parallel``.
    """
    chunk = context if algorithm == "parallel" else CHUNK
    full, rest = divmod(context, chunk)
    pairs = full * chunk * (chunk + 1) // 2 + rest * (rest + 1) // 2
    through_state = 4 * heads * key_width * value_width
    return through_state + 2 * pairs * heads * (key_width + value_width) / context


def linear_step_flops(heads: int, key_width: int, value_width: int, normalize: bool = False) -> float:
    """FLOPs of one token of decoding: the state written and read, and a normalizer written."""
    return heads * key_width * (4 * value_width + 2 * normalize)


def state_bytes(heads: int, key_width: int, value_width: int, dtype: torch.dtype) -> int:
    """Bytes of a state, which is in fp32 or better; of a normalized one, ``value_width`` is one more."""
    return heads * key_width * value_width * max(dtype.itemsize, torch.float32.itemsize)


def window_pairs(context: int, window: int, first: int = 0, block: int = 1) -> int:
    """Pairs of query and key of a causal window, the query's own key included, and of the ``first`` tokens.

    With a ``block`` over 1, whole blocks of so many queries and keys are counted, of those on the diagonal the lower
    half: what a kernel computes that works on blocks.
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
