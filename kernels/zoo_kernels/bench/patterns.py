"""Block patterns of the sparse attentions: which blocks of keys a block of queries lists."""

from __future__ import annotations

import torch
from torch import Tensor


def window_blocks(blocks: int, near: int) -> Tensor:
    """``(1, 1, blocks, blocks)``: each block reads itself and the ``near - 1`` before it."""
    i = torch.arange(blocks)
    distance = i[:, None] - i[None, :]
    return ((distance >= 0) & (distance < near))[None, None]


def longformer_blocks(blocks: int, near: int, first: int) -> Tensor:
    """A window, and the first blocks, which all read: ``(1, 1, blocks, blocks)`` (after arXiv:2004.05150)."""
    visible = window_blocks(blocks, near)
    visible[..., :first] = True
    return visible.tril()


def bigbird_blocks(blocks: int, heads: int, near: int, first: int, random: int) -> Tensor:
    """The same and random earlier blocks by head: ``(1, heads, blocks, blocks)`` (after arXiv:2007.14062)."""
    base = longformer_blocks(blocks, near, first).expand(1, heads, -1, -1)
    free = ~base & base.new_ones(blocks, blocks).tril()
    scores = torch.rand(base.shape, generator=torch.Generator().manual_seed(0)).masked_fill(~free, -1.0)
    best = scores.topk(min(random, blocks), dim=-1)
    return base | torch.zeros_like(base).scatter(-1, best.indices, best.values >= 0)


def window_pairs(length: int, window: int) -> float:
    """Pairs of a causal window over all causal pairs."""
    outside = max(length - window, 0)
    return 1 - outside * (outside + 1) / (length * (length + 1))
