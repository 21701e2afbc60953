"""Block patterns of the sparse attentions: which blocks of keys a block of queries lists."""

from __future__ import annotations

from typing import Any

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
    return visible & window_blocks(blocks, blocks)


def bigbird_blocks(blocks: int, heads: int, near: int, first: int, random: int, seed: int = 0) -> Tensor:
    """The same and random earlier blocks by head: ``(1, heads, blocks, blocks)`` (after arXiv:2007.14062)."""
    base = longformer_blocks(blocks, near, first).expand(1, heads, -1, -1)
    free = window_blocks(blocks, blocks) & ~base
    scores = torch.rand(base.shape, generator=torch.Generator().manual_seed(seed)).masked_fill(~free, -1.0)
    best = scores.topk(min(random, blocks), dim=-1)
    return base | torch.zeros_like(base).scatter(-1, best.indices, best.values >= 0)


def layout_of(visible: Tensor, block: int, device: torch.device) -> Any:
    """The kernels' layout of a pattern."""
    from zoo_kernels.layout import BlockLayout

    return BlockLayout.from_blocks(visible.to(device), block)


def tokens_of(visible: Tensor, block: int, length: int) -> Tensor:
    """``(1, heads or 1, length, length)``: the pairs of tokens that a causal pattern allows."""
    tokens = visible.repeat_interleave(block, -1).repeat_interleave(block, -2)[..., :length, :length]
    return tokens & torch.ones(length, length, dtype=torch.bool, device=tokens.device).tril()


def window_pairs(length: int, window: int) -> float:
    """Pairs of a causal window over all causal pairs."""
    inside = sum(min(t + 1, window) for t in range(length))
    return inside / (length * (length + 1) / 2)
