"""Softmax attention from its definition, query by query; shares nothing with the kernels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from zoo_kernels import BlockLayout


def visible(
    queries: int, keys: int, window: int | None = None, sink_tokens: int = 0, documents: list[int] | None = None
) -> list[list[int]]:
    """Keys that each query of one row may read."""
    ids = [0] * keys if documents is None else documents
    lists = []
    for t in range(keys - queries, keys):
        start = t
        while start > 0 and ids[start - 1] == ids[t]:
            start -= 1
        lists.append([j for j in range(start, t + 1) if window is None or t - j < window or j - start < sink_tokens])
    return lists


def dense(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    window: int | None = None,
    sink_tokens: int = 0,
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
        for t, listed in enumerate(visible(queries, keys, window, sink_tokens, ids)):
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


def segments(length: int, documents: list[int] | None) -> list[tuple[int, int]]:
    """Start and end of the documents of one row."""
    ids = [0] * length if documents is None else documents
    starts = [t for t in range(length) if t == 0 or ids[t] != ids[t - 1]]
    return list(zip(starts, [*starts[1:], length]))


@dataclass
class Pattern:
    """``index[b][h][query block]`` lists key blocks; ``rules``, of the same shape, names a row of ``seen`` or is -1."""

    block: int
    index: Tensor
    rules: Tensor | None = None
    seen: Tensor | None = None  # (M, block, block) bool

    def layout(self) -> BlockLayout:
        bits = None if self.seen is None else pack_bits(self.seen)
        return BlockLayout.from_index(self.index, self.block, self.rules, bits)

    def mask(self, batch: int, length: int, documents: Tensor | None = None) -> Tensor:
        """``(batch, H', length, length)`` bool, token by token."""
        mask = torch.zeros(batch, self.index.shape[1], length, length, dtype=torch.bool)
        for b in range(batch):
            for start, stop in segments(length, None if documents is None else documents[b].tolist()):
                for h in range(mask.shape[1]):
                    alone = self._alone(min(b, len(self.index) - 1), h, stop - start)
                    mask[b, h, start:stop, start:stop] = alone
        return mask

    def _alone(self, b: int, h: int, length: int) -> Tensor:
        n = self.block
        mask = torch.zeros(self.index.shape[2] * n, self.index.shape[2] * n, dtype=torch.bool)
        for row, blocks in enumerate(self.index[b, h].tolist()):
            for slot in reversed(range(len(blocks))):  # the first of equal ones is written last
                if not 0 <= blocks[slot] <= row:
                    continue
                rule = -1 if self.rules is None else int(self.rules[b, h, row, slot])
                shown = torch.ones(n, n, dtype=torch.bool) if rule < 0 else self.seen[rule]
                mask[row * n : (row + 1) * n, blocks[slot] * n : (blocks[slot] + 1) * n] = shown
        return mask.tril()[:length, :length]


def pack_bits(seen: Tensor) -> Tensor:
    """``(M, block, block)`` bool as rows of 32 bit words, bit by bit."""
    rows, block, _ = seen.shape
    words = torch.zeros(rows, block, -(-block // 32), dtype=torch.int64)
    for column in range(block):
        words[:, :, column // 32] |= seen[:, :, column].long() << column % 32
    return torch.where(words >= 2**31, words - 2**32, words).int()


def spread_bias(bias: Tensor, block: int, length: int, documents: Tensor | None, batch: int) -> Tensor:
    """Bias of pairs of blocks as ``(batch, H | 1, length, length)`` of pairs of tokens."""
    rows = []
    for b in range(batch):
        ids = None if documents is None else documents[b].tolist()
        place = torch.cat([torch.arange(stop - start) for start, stop in segments(length, ids)]) // block
        rows.append(bias[min(b, len(bias) - 1)][:, place][:, :, place])
    return torch.stack(rows)


def sparse(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern,
    *,
    block_bias: Tensor | None = None,
    documents: Tensor | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp of a pattern of blocks."""
    batch, queries, heads, width = q.shape
    keys, group = k.shape[1], heads // k.shape[2]
    k, v = (torch.stack([x[:, :, h // group] for h in range(heads)], 2) for x in (k, v))
    mask = pattern.mask(batch, keys, documents)[:, :, keys - queries :].expand(-1, heads, -1, -1)
    scores = torch.einsum("bthd,bjhd->bhtj", q, k) * (width**-0.5 if scale is None else scale)
    if block_bias is not None:
        scores = scores + spread_bias(block_bias, pattern.block, keys, documents, batch)[:, :, keys - queries :]
    weights = scores.exp() * mask
    total = weights.sum(-1)
    empty = total == 0
    total = torch.where(empty, 1.0, total)
    o = torch.einsum("bhtj,bjhe->bhte", weights, v) / total[..., None]
    return o.transpose(1, 2), total.log().masked_fill(empty, -torch.inf).transpose(1, 2)
