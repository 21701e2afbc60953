"""Reference form of softmax attention: the whole score matrix, written for clarity and as an oracle of tests."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo_kernels.documents import document_positions
from zoo_kernels.layout import BlockLayout
from zoo_kernels.layout.block_mask import read_bits, table
from zoo_kernels.softmax.mask import KeyRule


def reference_softmax_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rule: KeyRule,
    scale: float,
    layout: BlockLayout | None = None,
    block_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Computes attention from the whole score matrix.

    Returns:
        Output ``(B, Tq, H, E)`` and natural log-sum-exp ``(B, Tq, H)``; rows without a key give 0 and -inf.
    """
    repeats = q.shape[2] // max(k.shape[2], 1)
    k, v = k.repeat_interleave(repeats, dim=2), v.repeat_interleave(repeats, dim=2)
    scores = torch.einsum("bthd,bjhd->bhtj", q, k) * scale
    allowed = rule.allowed((0, q.shape[1]), (0, k.shape[1]), q.device)
    if layout is not None:
        time = torch.arange(k.shape[1], device=q.device)[None]
        place = time if rule.documents is None else document_positions(rule.documents)
        allowed = allowed & _listed(layout, place[:, rule.offset :], place)
        if block_bias is not None:
            scores = scores + _of_tokens(block_bias.to(scores.dtype), layout.block, place[:, rule.offset :], place)
    scores = scores.masked_fill(~allowed, -torch.inf)
    empty = ~allowed.any(-1, keepdim=True)
    weights = scores.masked_fill(empty, 0.0).softmax(-1).masked_fill(empty, 0.0)
    lse = scores.masked_fill(empty, 0.0).logsumexp(-1).masked_fill(empty[..., 0], -torch.inf)
    return torch.einsum("bhtj,bjhe->bthe", weights, v), lse.transpose(1, 2)


def _of_tokens(blocks: Tensor, block: int, queries: Tensor, keys: Tensor) -> Tensor:
    """Values of pairs of blocks ``(B | 1, H | 1, blocks, blocks)`` for pairs of positions, ``(B | 1, T)`` each."""
    rows, columns = queries[:, None, :, None] // block, keys[:, None, None, :] // block
    batch, head = (torch.arange(n, device=blocks.device) for n in blocks.shape[:2])
    return blocks[batch[:, None, None, None], head[:, None, None], rows, columns]


def _listed(layout: BlockLayout, queries: Tensor, keys: Tensor) -> Tensor:
    rules = _of_tokens(table(layout.by_query), layout.block, queries, keys)
    if not len(layout.bits):
        return rules > -2
    rows, columns = (x % layout.block for x in (queries[:, None, :, None], keys[:, None, None, :]))
    return (rules == -1) | ((rules >= 0) & read_bits(layout.bits)[rules.clamp(min=0), rows, columns])
