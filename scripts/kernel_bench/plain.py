"""Attention as a formula, O(T^2), in the precision of its inputs: in fp64 the truth, in low precision the allowance."""

from __future__ import annotations

import torch
from torch import Tensor


def runs_of(documents: Tensor) -> Tensor:
    """Number of each token's document in its row, counted from 0: ``(B, T)``."""
    changes = torch.zeros_like(documents, dtype=torch.long)
    changes[:, 1:] = (documents[:, 1:] != documents[:, :-1]).long()
    return changes.cumsum(1)


def plain_linear(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    state: Tensor,
    documents: Tensor | None = None,
    scale: float = 1.0,
    normalize: bool = False,
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    """Output ``(B, T, H, E)`` and last state ``(B, H, D, E)``; with ``normalize`` the state has one more column, z."""
    batch, length, heads, _ = q.shape
    wide = torch.promote_types(q.dtype, torch.float32)
    if normalize:
        v = torch.cat([v, torch.ones_like(v[..., :1])], -1)
    decays = q.new_zeros(heads, dtype=wide) if log_decay is None else log_decay.to(wide)
    total = decays.expand(batch, length, heads).cumsum(1).transpose(1, 2)  # (B, H, T)
    runs = q.new_zeros(batch, length, dtype=torch.long) if documents is None else runs_of(documents)
    order = torch.ones(length, length, dtype=torch.bool, device=q.device).tril()
    allowed = (order & (runs[:, :, None] == runs[:, None, :]))[:, None]
    weights = (total[..., :, None] - total[..., None, :]).masked_fill(~allowed, -torch.inf).exp()
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    output = ((q @ k.mT) * weights.to(q.dtype)) @ v
    reads = total.exp() * (runs == 0)[:, None]
    output = output + (q * reads[..., None].to(q.dtype)) @ state.to(q.dtype)
    keeps = (total[..., -1:] - total).exp() * (runs == runs[:, -1:])[:, None]
    last = (k * keeps[..., None].to(k.dtype)).mT @ v
    last = last.to(wide) + reads[..., -1, None, None] * state.to(wide)
    output = output.transpose(1, 2)
    if normalize:
        below = output[..., -1:]
        output = output[..., :-1] / torch.where(below < 0, below.clamp(max=-eps), below.clamp(min=eps))
    return output * scale, last


def visible_pairs(
    queries: int,
    keys: int,
    device: torch.device,
    window: int | None = None,
    sink_tokens: int = 0,
    documents: Tensor | None = None,
) -> Tensor:
    """``(B or 1, 1, Tq, Tk)``: the keys that each of the last Tq tokens may read."""
    t = torch.arange(keys - queries, keys, device=device)[:, None]
    j = torch.arange(keys, device=device)[None, :]
    near = (j <= t) if window is None else (j <= t) & (j > t - window)
    if documents is None:
        return (near | ((j <= t) & (j < sink_tokens)))[None, None]
    runs = runs_of(documents)
    firsts = torch.searchsorted(runs, runs)  # runs are sorted: where each token's document begins
    same = runs[:, keys - queries :, None] == runs[:, None, :]
    early = (j <= t) & (j - firsts[:, None, :] < sink_tokens)
    return ((near | early) & same)[:, None]


def plain_softmax(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    allowed: Tensor,
    scale: float | None = None,
    sink_logits: Tensor | None = None,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Output ``(B, Tq, H, E)`` and log-sum-exp ``(B, Tq, H)``; ``bias`` is added to the scores, token by token."""
    wide = torch.promote_types(q.dtype, torch.float32)
    share = q.shape[2] // k.shape[2]
    k, v = (x.repeat_interleave(share, 2) for x in (k, v))
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    scores = ((q @ k.mT) * scale).to(wide)
    if bias is not None:
        scores = scores + bias.to(wide)
    scores = scores.masked_fill(~allowed, -torch.inf)
    if sink_logits is not None:
        extra = sink_logits.to(wide)[None, :, None, None].expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, extra], -1)
    seen = scores.isfinite().any(-1, keepdim=True)
    safe = torch.where(seen, scores, 0.0)  # a row without a key has a log-sum-exp of -inf and no gradient
    lse = safe.logsumexp(-1, keepdim=True)
    weights = torch.where(seen, (safe - lse).exp(), 0.0)[..., : k.shape[2]]
    output = weights.to(q.dtype) @ v
    lse = torch.where(seen, lse, -torch.inf)[..., 0]
    return output.transpose(1, 2), lse.transpose(1, 2)
