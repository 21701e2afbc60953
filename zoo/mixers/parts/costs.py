"""Closed forms that mixers of one family share; FLOPs count a multiply and an add as two."""

from __future__ import annotations

import torch

CHUNK = 64  # of the linear kernels


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


def window_pairs(context: int, window: int) -> int:
    """Pairs of query and key of a causal window: the query's own key is one of them."""
    short = min(context, window)
    return short * (short + 1) // 2 + (context - short) * window
