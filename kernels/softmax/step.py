"""One query per row over its cache, in plain PyTorch, and where a ring cache keeps its tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.softmax.fused import fused_forward, fuses
from kernels.softmax.tiles import HIDDEN


def ring_slots(positions: Tensor, capacity: int, sinks: int = 0) -> Tensor:
    """Slot of each position in a ring cache: the sinks stay at the front, the others go round behind them.

    Args:
        positions: integers of any shape, counted from 0.
        capacity: slots; more than ``sinks``, or nothing but sinks can be held.

    Raises:
        ValueError: if there is no slot beside the sinks.
    """
    if capacity <= sinks or sinks < 0:
        raise ValueError(f"a ring of {capacity} slots has no room beside {sinks} sinks.")
    return torch.where(positions < sinks, positions, sinks + (positions - sinks) % (capacity - sinks))


def step(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    lengths: Tensor,
    window: int | None,
    sinks: int,
    ring: bool,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Output ``(B, H, E)`` in the dtype of q and log-sum-exp ``(B, H)``; see :func:`kernels.softmax_attention_step`."""
    batch, heads, width = q.shape
    groups, capacity = k_cache.shape[2], k_cache.shape[1]
    dtype = torch.promote_types(q.dtype, torch.float32)
    query = q.reshape(batch, groups, heads // groups, width).to(dtype)
    last = lengths[:, None] - 1
    place = torch.arange(capacity, device=q.device)[None]
    if ring:  # the latest position that a slot has taken
        turns = torch.div(last - place, capacity - sinks, rounding_mode="floor").clamp(min=0)
        place = torch.where(place < sinks, place, place + turns * (capacity - sinks))
    valid = place <= last
    if window is not None:
        valid = valid & ((place > last - window) | (place < sinks))
    if fuses(query, v_cache) and capacity:
        mask = torch.zeros(valid.shape, dtype=dtype, device=q.device).masked_fill_(~valid, HIDDEN)[:, None, None]
        keys, values = (x.to(dtype).transpose(1, 2) for x in (k_cache, v_cache))
        output, lse = fused_forward(query, keys, values, mask, scale)
        seen = lse > HIDDEN / 2
        output, lse = output * seen[..., None], lse.masked_fill(~seen, -torch.inf)
        return output.reshape(batch, heads, -1).to(q.dtype), lse.reshape(batch, heads)
    scores = (query * scale) @ k_cache.to(dtype).permute(0, 2, 3, 1)  # (B, G, R, capacity)
    scores = scores.masked_fill(~valid[:, None, None], -torch.inf)
    lse = scores.logsumexp(-1, keepdim=True)
    weights = (scores - lse.clamp(min=torch.finfo(dtype).min)).exp()
    output = weights @ v_cache.to(dtype).transpose(1, 2)
    return output.reshape(batch, heads, -1).to(q.dtype), lse.reshape(batch, heads)
