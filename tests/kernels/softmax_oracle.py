"""Softmax attention from its definition, query by query; shares nothing with the kernels."""

from __future__ import annotations

import torch
from torch import Tensor


def visible(
    queries: int, keys: int, window: int | None = None, sinks: int = 0, documents: list[int] | None = None
) -> list[list[int]]:
    """Keys that each query of one row may read."""
    ids = [0] * keys if documents is None else documents
    lists = []
    for t in range(keys - queries, keys):
        start = t
        while start > 0 and ids[start - 1] == ids[t]:
            start -= 1
        lists.append([j for j in range(start, t + 1) if window is None or t - j < window or j - start < sinks])
    return lists


def dense(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    window: int | None = None,
    sinks: int = 0,
    sink_logits: Tensor | None = None,
    scale: float | None = None,
    documents: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Output ``(B, Tq, H, E)`` and log-sum-exp ``(B, Tq, H)``."""
    batch, queries, heads, width = q.shape
    keys, group = k.shape[1], heads // k.shape[2]
    k, v = (torch.stack([x[:, :, h // group] for h in range(heads)], 2) for x in (k, v))
    mask = torch.zeros(batch, queries, keys, dtype=torch.bool)
    for b in range(batch):
        ids = None if documents is None else documents[b].tolist()
        for t, listed in enumerate(visible(queries, keys, window, sinks, ids)):
            mask[b, t, listed] = True
    scores = torch.einsum("bthd,bjhd->bthj", q, k) * (width**-0.5 if scale is None else scale)
    weights = scores.exp() * mask[:, :, None]
    total = weights.sum(-1)
    if sink_logits is not None:
        total = total + sink_logits.exp()
    empty = total == 0
    total = torch.where(empty, 1.0, total)
    o = torch.einsum("bthj,bjhe->bthe", weights, v) / total[..., None]
    return o, total.log().masked_fill(empty, -torch.inf)
