"""Attention over a union of disjoint sets of keys, from the attention over each."""

from __future__ import annotations

import torch
from torch import Tensor


def merge(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Merges attention over disjoint sets of keys: ``o = sum_i exp(lse_i - lse) o_i``, ``lse = log sum_i exp(lse_i)``.

    Gradients flow through outputs and log-sum-exps. A part without a key in a row, of log-sum-exp -inf, adds nothing to
    it; a row without a key in any part gives 0 and -inf, and zero gradients (Dao et al. 2022, arXiv:2205.14135).

    Args:
        parts: for each set the output ``(B, T, H, E)`` and the natural log-sum-exp ``(B, T, H)`` of its scores.

    Returns:
        Output in the dtype of the first, and log-sum-exp in fp32 or better.

    Raises:
        ValueError: if there is no part.
    """
    if not parts:
        raise ValueError("parts=[]: expected at least one output with its log-sum-exp.")
    outputs, sums = zip(*parts)
    wide = torch.promote_types(outputs[0].dtype, torch.float32)
    lse = torch.stack([s.to(wide) for s in sums])
    top = lse.detach().amax(0)
    top = top.masked_fill(top == -torch.inf, 0)  # exp(-inf - 0) is 0, exp(-inf + inf) would be NaN
    weights = (lse - top).exp()
    total = weights.sum(0)
    empty = total == 0
    total = total.masked_fill(empty, 1)
    weights = weights / total
    output = (weights[..., None] * torch.stack([o.to(wide) for o in outputs])).sum(0)
    return output.to(outputs[0].dtype), (top + total.log()).masked_fill(empty, -torch.inf)
