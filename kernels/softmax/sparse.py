"""Tiles of block-sparse layouts: keys of the listed blocks are gathered, others are never touched.

Blocks of queries are sorted by the length of their lists, so that a tile holds lists of about one length: full blocks
at the front, partial ones at the end, padding between them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.documents import document_positions
from kernels.layout import BlockLayout
from kernels.layout.block_mask import read_bits
from kernels.softmax import tiles
from kernels.softmax.tiles import HIDDEN, Grid

FILL = 0.75  # shortest list of a tile, in terms of its longest


@dataclass(frozen=True)
class Bias:
    """Additive logits of pairs of blocks ``(B or 1, H or 1, blocks, blocks)``, and the place for their gradient.

    ``positions`` counts tokens from the start of their document, ``(B, Tk)``; None: blocks are those of the layout.
    """

    values: Tensor
    gradient: Tensor | None
    positions: Tensor | None

    def index(self, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        """Place in the flattened values of blocks that broadcast against each other."""
        batches, heads, rows, columns = self.values.shape
        lists = (batch if batches > 1 else 0 * batch) * heads + (head if heads > 1 else 0 * head)
        return (lists * rows + query) * columns + key


class Lists:
    """The lists of a call, one per unit: a block of queries of one head, or of the query heads of one key head."""

    def __init__(self, layout: BlockLayout, q: Tensor, k: Tensor, bias: Bias | None) -> None:
        batch, length, heads, _ = q.shape
        self.layout, self.bias, self.heads, self.groups = layout, bias, heads, k.shape[2]
        self.block = block = layout.block
        self.key_blocks = -(-k.shape[1] // block)
        offset = k.shape[1] - length
        self.first = offset // block
        count = self.key_blocks - self.first
        shared = layout.shape[1] == 1 and (bias is None or bias.positions is None)
        groups = self.groups if shared else heads
        self.folded = groups
        self.grid = Grid(heads // groups, block, count, offset - self.first * block, 0, self.key_blocks * block)
        shape = batch, groups, layout.shape[2]
        lists = layout.by_query
        begin, end = lists.offsets[..., :-1], lists.offsets[..., 1:]
        rows = slice(self.first, self.key_blocks)
        self.begin, self.end, self.full = (
            x.expand(shape)[..., rows].reshape(batch * groups, -1) for x in (begin, end, begin + lists.full)
        )

    def tiles(self, first: int, last: int) -> Iterator[Listed]:
        """Tiles of the key heads from ``first`` on, counted over the batch."""
        fold = self.folded // self.groups
        counts = (self.end - self.begin)[first * fold : last * fold].flatten()
        lengths, order = counts.sort(descending=True)
        units, sizes = order + first * fold * self.grid.blocks, lengths.tolist()
        rows = self.block * self.grid.fold
        start = 0
        while start < len(sizes) and sizes[start]:
            limit = max(tiles.ELEMENTS // (rows * self.block * sizes[start]), 1)
            stop = start + 1
            while stop < min(len(sizes), start + limit) and sizes[stop] >= FILL * sizes[start] and sizes[stop]:
                stop += 1
            yield Listed(self, units[start:stop], sizes[start], sizes[stop - 1], first)
            start = stop


class Listed:
    """Some units, with lists of about one length."""

    def __init__(self, lists: Lists, units: Tensor, longest: int, shortest: int, first: int) -> None:
        fold = lists.folded // lists.groups
        self.lists, self.units = lists, units - first * fold * lists.grid.blocks
        self.row, self.query_block = units // lists.grid.blocks, units % lists.grid.blocks + lists.first
        self.batch = self.row // lists.folded
        begin, end, full = (x.flatten()[units][:, None].long() for x in (lists.begin, lists.end, lists.full))
        slot = torch.arange(longest, device=units.device)
        late = end - longest + slot
        entry = torch.where(begin + slot < full, begin + slot, late)
        self.listed = entry >= torch.where(begin + slot < full, begin, full)
        entry = entry.clamp(min=0)
        by_query = lists.layout.by_query
        self.blocks = torch.where(self.listed, by_query.blocks[entry].long(), 0)
        self.masks = torch.where(self.listed, by_query.masks[entry].long(), -1)
        whole = (self.listed & (begin + slot < full)).all(0)
        self.checked = int(whole.long().cumprod(0).sum())  # slots before are full in every list
        key_head = self.row // fold if fold > 1 else self.row
        self.at = ((key_head - first)[:, None] * lists.key_blocks + self.blocks).flatten()

    def rows(self, x: Tensor) -> Tensor:
        """Queries of the units."""
        return x.flatten(0, 1).index_select(0, self.units)

    def write(self, x: Tensor, part: Tensor) -> None:
        """Puts them back."""
        x.flatten(0, 1).index_copy_(0, self.units, part)

    def keys(self, x: Tensor) -> Tensor:
        """Keys of the listed blocks."""
        block = self.lists.block
        part = x.view(-1, block * x.shape[-1]).index_select(0, self.at)
        return part.view(len(self.units), -1, x.shape[-1])

    def add(self, x: Tensor, part: Tensor) -> None:
        """Adds to the listed blocks; padding adds zeros."""
        wide = self.lists.block * x.shape[-1]
        x.view(-1, wide).index_add_(0, self.at, part.reshape(-1, wide))

    def rule_(self, scores: Tensor) -> None:
        """Adds the bias of each pair; hides padding, the future and what the bits hide."""
        self._add_bias_(scores)
        block, words = self.lists.block, self.lists.layout.bits
        place = torch.arange(block, device=scores.device)
        blocks, masks = self.blocks[:, self.checked :], self.masks[:, self.checked :]
        distance = (self.query_block[:, None] - blocks) * block  # of the first query from the first key
        distance = torch.where(self.listed[:, self.checked :], distance, -block)
        seen = distance[:, None, :, None] >= place - place[:, None, None]
        if len(words):
            bits = read_bits(words[masks.clamp(min=0)]) | (masks < 0)[..., None, None]
            seen = seen & bits.transpose(1, 2)
        scores[..., self.checked * block :].masked_fill_(~seen.flatten(2)[:, None], HIDDEN)

    def mask(self) -> Tensor | None:
        """The triangle of the block itself behind full blocks, which is all that most layouts hide."""
        last, plain = self.blocks[:, -1] == self.query_block, self.masks.amax() < 0 and self.listed.all()
        if self.lists.bias is not None or self.checked < self.blocks.shape[1] - 1 or not (plain and last.all()):
            return None
        block = self.lists.block
        seen = torch.ones(block, block, dtype=torch.bool, device=self.units.device).tril_()
        return F.pad(torch.zeros_like(seen, dtype=torch.float32).masked_fill_(~seen, HIDDEN), (self.checked * block, 0))

    def bias_gradient(self, grad_scores: Tensor) -> None:
        """Sums over the tokens of each pair of blocks."""
        bias = self.lists.bias
        if bias is None or bias.gradient is None:
            return
        index = self._bias_index(bias)
        if bias.positions is None:
            block = self.lists.block
            grad_scores = grad_scores.unflatten(-1, (-1, block)).sum((2, 4))
        bias.gradient.view(-1).index_put_((index.expand(grad_scores.shape),), grad_scores, accumulate=True)

    def _add_bias_(self, scores: Tensor) -> None:
        bias = self.lists.bias
        if bias is None:
            return
        values = bias.values.reshape(-1).to(scores.dtype)[self._bias_index(bias)]
        if bias.positions is None:
            scores.unflatten(-1, (-1, self.lists.block)).add_(values[:, :, None, :, None])
        else:
            scores.add_(values)

    def _bias_index(self, bias: Bias) -> Tensor:
        """``(n, R, lists)``, or ``(n, 1, c, s)`` where blocks of the bias are not those of the layout."""
        lists, block = self.lists, self.lists.block
        fold = lists.grid.fold
        head = (self.row % lists.folded)[:, None] * fold + torch.arange(fold, device=self.row.device)
        if bias.positions is None:
            query = self.query_block[:, None, None]
            return bias.index(self.batch[:, None, None], head[..., None], query, self.blocks[:, None])
        place, last = torch.arange(block, device=self.row.device), bias.positions.shape[1] - 1
        t = (self.query_block[:, None] * block + place).clamp(max=last)
        j = (self.blocks[..., None] * block + place).flatten(1).clamp(max=last)
        rows, columns = (bias.positions[self.batch[:, None], x] // block for x in (t, j))
        return bias.index(
            self.batch[:, None, None, None], head[..., None, None], rows[:, None, :, None], columns[:, None, None]
        )


def plan(
    q: Tensor,
    k: Tensor,
    layout: BlockLayout,
    block_bias: Tensor | None,
    documents: Tensor | None,
    gradient: Tensor | None = None,
) -> tuple[Grid, tiles.Tiles]:
    """How to cut the queries, and the tiles that do the work.

    Args:
        block_bias: ``(B | 1, H | 1, blocks, blocks)``, of the documents where these are given.
        gradient: contiguous array that the gradient of the bias is added to.
    """
    positions = None if documents is None else document_positions(documents)
    bias = None if block_bias is None else Bias(block_bias, gradient, positions)
    lists = Lists(layout, q, k, bias)
    return lists.grid, lists.tiles
