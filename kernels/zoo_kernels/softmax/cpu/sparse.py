"""Tiles of block-sparse layouts: keys of visible blocks are gathered, other keys are never touched.

Blocks of queries are sorted by the length of their lists, so that a tile holds lists of about one length: full blocks
at the front, partial ones at the end, padding between them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo_kernels.documents import document_positions
from zoo_kernels.layout import BlockLayout
from zoo_kernels.layout.block_mask import read_bits
from zoo_kernels.softmax.cpu import tiles
from zoo_kernels.softmax.cpu.tiles import Grid, hidden

FILL = 0.75  # shortest list of a tile, in terms of its longest


@dataclass(frozen=True)
class Bias:
    """Additive logits of pairs of blocks, and the tensor that collects their gradient.

    Attributes:
        values: ``(B or 1, H or 1, blocks, blocks)``.
        gradient: tensor of the same shape that gradients are added to, or None.
        positions: ``(B, Tk)`` positions of tokens in their documents; None: blocks are those of the layout.
    """

    values: Tensor
    gradient: Tensor | None
    positions: Tensor | None

    def index(self, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        """Returns the index into the flattened values for blocks that broadcast against each other."""
        batches, heads, rows, columns = self.values.shape
        lists = (batch if batches > 1 else 0 * batch) * heads + (head if heads > 1 else 0 * head)
        return (lists * rows + query) * columns + key


class UnitLists:
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
        """Yields the tiles of the key heads from ``first`` to ``last``, counted over the batch."""
        fold = self.folded // self.groups
        blocks = self.grid.blocks
        begin, end, full = (x[first * fold : last * fold].flatten().long() for x in (self.begin, self.end, self.full))
        lengths, units = (end - begin).sort(descending=True, stable=True)
        sizes = lengths.tolist()
        cuts = self._cut(sizes)
        longest = lengths.new_tensor([size for start, stop in cuts for size in [sizes[start]] * (stop - start)])
        if not cuts:
            return
        units = units[: len(longest)]
        entries = _Entries.of(self, units, first * fold * blocks, first, longest, begin[units], end[units], full[units])
        known, plain = (full - begin)[units].tolist(), entries.plain.tolist()
        for start, stop in cuts:
            size, whole = sizes[start], min(known[start:stop])
            even = sizes[stop - 1] == size
            triangle = all(plain[start:stop]) and even and whole == size - 1
            yield Listed(self, entries.part(start, stop, size), whole, triangle, even and whole == size)

    def _cut(self, sizes: list[int]) -> list[tuple[int, int]]:
        """Ranges of the sorted lists that make a tile each."""
        rows, cuts, start = self.block * self.grid.fold, [], 0
        while start < len(sizes) and sizes[start]:
            limit = max(tiles.ELEMENTS // (rows * self.block * sizes[start]), 1)
            stop = start + 1
            while stop < min(len(sizes), start + limit) and sizes[stop] >= FILL * sizes[start] and sizes[stop]:
                stop += 1
            cuts.append((start, stop))
            start = stop
        return cuts


class _Entries(NamedTuple):
    """Sorted units with their lists, all padded to the longest: full blocks first, partial ones last."""

    units: Tensor  # counted from the first of the part
    row: Tensor  # batch row times heads, and head
    query_block: Tensor
    listed: Tensor  # (units, slots) whether a slot holds an entry
    blocks: Tensor  # (units, slots) key blocks
    masks: Tensor  # (units, slots) their rows of bits, or -1
    at: Tensor  # (units, slots) where the blocks are in the keys of the part
    plain: Tensor  # whether a list hides nothing but the triangle of its last block, its own

    @classmethod
    def of(
        cls, lists: UnitLists, units: Tensor, skipped: int, first: int, longest: Tensor, begin: Tensor, end: Tensor,
        full: Tensor,
    ) -> _Entries:  # fmt: skip
        """``longest``: slots of the tile of each unit; entries are ``begin`` to ``end``, full ones to ``full``."""
        fold, by_query = lists.folded // lists.groups, lists.layout.by_query
        number = units + skipped
        row, query_block = number // lists.grid.blocks, number % lists.grid.blocks + lists.first
        slot = torch.arange(int(longest[0]), device=units.device)
        early = (begin[:, None] + slot) < full[:, None]
        entry = torch.where(early, begin[:, None] + slot, (end - longest)[:, None] + slot)
        listed = (early | (entry >= full[:, None])) & (slot < longest[:, None])
        entry = torch.where(listed, entry, 0)
        blocks = torch.where(listed, by_query.blocks[entry].long(), query_block[:, None])  # padding: the own block
        masks = torch.where(listed, by_query.masks[entry].long(), -1)
        key_head = row // fold - first
        own = blocks.gather(1, longest[:, None] - 1)[:, 0] == query_block
        plain = own & (masks.amax(1) < 0) & (end - full == 1)
        return cls(units, row, query_block, listed, blocks, masks, key_head[:, None] * lists.key_blocks + blocks, plain)

    def part(self, start: int, stop: int, slots: int) -> _Entries:
        """Some units, with as many slots as they need."""
        return _Entries(*(x[start:stop] if x.dim() == 1 else x[start:stop, :slots] for x in self))


class Listed:
    """Tile of some units whose lists have about one length."""

    def __init__(self, lists: UnitLists, entries: _Entries, whole: int, triangle: bool, bare: bool) -> None:
        self.bare = bare and lists.bias is None
        self.lists, self.checked, self.triangle = lists, whole, triangle  # slots before ``checked`` are full in all
        self.units, self.row, self.query_block = entries.units, entries.row, entries.query_block
        self.listed, self.blocks, self.masks = entries.listed, entries.blocks, entries.masks
        self.batch, self.at = entries.row // lists.folded, entries.at.flatten()

    def rows(self, x: Tensor) -> Tensor:
        """Returns the queries of the units, ``(n, R*c, X)``."""
        return x.flatten(0, 1).index_select(0, self.units)

    def write(self, x: Tensor, part: Tensor) -> None:
        """Writes the queries of the units back to the places that :meth:`rows` reads."""
        x.flatten(0, 1).index_copy_(0, self.units, part)

    def keys(self, x: Tensor) -> Tensor:
        """Gathers the keys of the visible blocks, ``(n, s, X)``."""
        block = self.lists.block
        part = x.view(-1, block * x.shape[-1]).index_select(0, self.at)
        return part.view(len(self.units), -1, x.shape[-1])

    def add(self, x: Tensor, part: Tensor) -> None:
        """Adds gradients to the keys of the visible blocks; padding adds zeros."""
        wide = self.lists.block * x.shape[-1]
        x.view(-1, wide).index_add_(0, self.at, part.reshape(-1, wide))

    def rule_(self, scores: Tensor) -> None:
        """Adds the bias of each pair; hides padding, the future and what the bit masks hide."""
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
        scores[..., self.checked * block :].masked_fill_(~seen.flatten(2)[:, None], hidden(scores.dtype))

    def mask(self) -> Tensor | None:
        """Returns the causal triangle of the diagonal block behind full blocks, which is all that most layouts hide."""
        if not self.triangle or self.lists.bias is not None:
            return None
        block = self.lists.block
        seen = torch.ones(block, block, dtype=torch.bool, device=self.units.device).tril_()
        triangle = torch.zeros_like(seen, dtype=torch.float32).masked_fill_(~seen, hidden(torch.float32))
        return F.pad(triangle, (self.checked * block, 0))

    def bias_gradient(self, grad_scores: Tensor) -> None:
        """Adds the gradient of the bias, summed over the tokens of each pair of blocks."""
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
    """Cuts the queries and makes the tiles for a block-sparse layout.

    Args:
        q: queries ``(B, Tq, H, D)``.
        k: keys ``(B, Tk, G, D)``.
        layout: visible pairs of blocks.
        block_bias: ``(B | 1, H | 1, blocks, blocks)``, by blocks of the documents where ``documents`` is given.
        documents: ``(B, Tk)`` ids, for the bias.
        gradient: contiguous tensor that the gradient of the bias is added to.
    """
    positions = None if documents is None else document_positions(documents)
    bias = None if block_bias is None else Bias(block_bias, gradient, positions)
    lists = UnitLists(layout, q, k, bias)
    return lists.grid, lists.tiles
