"""Attention of one query per row over its cache in plain PyTorch, and the slots of a ring cache."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo_kernels.softmax.cpu.fused import fused_forward, fuses


def ring_slots(positions: Tensor, capacity: int, sink_tokens: int = 0) -> Tensor:
    """Slot of each position in a ring cache.

    Sink tokens stay at the front, later tokens rotate through the other slots.

    Args:
        positions: integers of any shape, counted from 0.
        capacity: number of slots, more than ``sink_tokens``.
        sink_tokens: number of first tokens that stay.

    Raises:
        ValueError: if there is no slot beside the sink tokens.
    """
    if capacity <= sink_tokens or sink_tokens < 0:
        raise ValueError(f"a ring of {capacity} slots has no room beside sink_tokens={sink_tokens}.")
    return torch.where(
        positions < sink_tokens, positions, sink_tokens + (positions - sink_tokens) % (capacity - sink_tokens)
    )


def step(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    lengths: Tensor,
    window: int | None,
    sink_tokens: int,
    ring: bool,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Computes output ``(B, H, E)`` and log-sum-exp ``(B, H)`` of :func:`zoo_kernels.softmax_attention_step`."""
    batch, heads, width = q.shape
    groups, capacity = k_cache.shape[2], k_cache.shape[1]
    dtype = torch.promote_types(q.dtype, torch.float32)
    query = q.reshape(batch, groups, heads // groups, width).to(dtype)
    last = lengths[:, None] - 1
    place = torch.arange(capacity, device=q.device)[None]
    if ring:  # the latest position that a slot has taken
        turns = torch.div(last - place, capacity - sink_tokens, rounding_mode="floor").clamp(min=0)
        place = torch.where(place < sink_tokens, place, place + turns * (capacity - sink_tokens))
    valid = place <= last
    if window is not None:
        valid = valid & ((place > last - window) | (place < sink_tokens))
    blank = ~valid[..., None, None]
    if q.device.type != "cpu":  # asking whether it is needed would wait for the device
        k_cache, v_cache = (x.masked_fill(blank, 0) for x in (k_cache, v_cache))
    output, lse = _attend(query, k_cache, v_cache, valid, scale)
    if q.device.type == "cpu" and not output.isfinite().all():  # 0 * NaN: slots that are not read may hold anything
        output, lse = _attend(query, k_cache.masked_fill(blank, 0), v_cache.masked_fill(blank, 0), valid, scale)
    return output.reshape(batch, heads, -1).to(q.dtype), lse.reshape(batch, heads)


def _attend(query: Tensor, keys: Tensor, values: Tensor, valid: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Of ``query (B, G, R, D)`` over the valid slots ``(B, capacity)``: output ``(B, G, R, E)``, lse ``(B, G, R)``."""
    keys, values = (x.to(query.dtype).transpose(1, 2) for x in (keys, values))
    if fuses(query, values) and valid.shape[1]:
        mask = torch.zeros(valid.shape, dtype=query.dtype).masked_fill_(~valid, -torch.inf)[:, None, None]
        output, lse = fused_forward(query, keys, values, mask, scale)
        return output, lse.masked_fill(~valid.any(1)[:, None, None], -torch.inf)
    scores = ((query * scale) @ keys.mT).masked_fill(~valid[:, None, None], -torch.inf)
    lse = scores.logsumexp(-1, keepdim=True)
    weights = (scores - lse.clamp(min=torch.finfo(lse.dtype).min)).exp()
    return weights @ values, lse[..., 0]
