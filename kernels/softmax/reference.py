"""Oracle for softmax attention: the whole score matrix, written to be read, not to be fast."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.softmax.mask import KeyRule


def reference_softmax_attention(q: Tensor, k: Tensor, v: Tensor, rule: KeyRule, scale: float) -> tuple[Tensor, Tensor]:
    """Output ``(B, Tq, H, E)`` and natural log-sum-exp ``(B, Tq, H)``; rows without a key give 0 and -inf."""
    repeats = q.shape[2] // k.shape[2]
    k, v = k.repeat_interleave(repeats, dim=2), v.repeat_interleave(repeats, dim=2)
    scores = torch.einsum("bthd,bjhd->bhtj", q, k) * scale
    allowed = rule.allowed((0, q.shape[1]), (0, k.shape[1]), q.device)
    scores = scores.masked_fill(~allowed, -torch.inf)
    empty = ~allowed.any(-1, keepdim=True)
    weights = scores.masked_fill(empty, 0.0).softmax(-1).masked_fill(empty, 0.0)
    lse = scores.masked_fill(empty, 0.0).logsumexp(-1).masked_fill(empty[..., 0], -torch.inf)
    return torch.einsum("bhtj,bjhe->bthe", weights, v), lse.transpose(1, 2)
