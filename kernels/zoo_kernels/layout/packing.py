"""Layouts of packed documents: blocks counted from a document's start, expressed in blocks of the packed row.

A query block of the row touches at most two relative blocks of the document of its first token, and a relative key
block touches at most two blocks of the row. Documents that begin inside a block read only that block.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from zoo_kernels.documents import document_starts
from zoo_kernels.layout.lists import Lists, both_lists, entry_rows, first_of_each

WORD = 0xFFFFFFFF


def pack(
    block: int, lists: Lists, bits: Tensor, longest: int | None, documents: Tensor
) -> tuple[Lists, Lists, Tensor, int]:
    """Returns the layout of packed documents.

    Args:
        block: tokens of a block.
        lists: entries by block of queries of the layout of one document.
        bits: masks of that layout.
        longest: bound of the entries of a block of queries; None if only the number of blocks bounds it.
        documents: ``(B, T)`` integer ids, each contiguous.

    Returns:
        Entries by query and by key, bits and bound of the layout of all.

    Raises:
        ValueError: on more tokens than the layout has, or rows that are not its own.
    """
    packing = _Packing(block, lists, bits, longest, documents)
    batch, head, row, key, keep = packing.candidates()
    if keep.device.type == "cpu" and not torch.compiler.is_compiling():  # nothing to wait for
        chosen = keep.nonzero()[:, 0]
        batch, head, row, key, keep = (x[chosen] for x in (batch, head, row, key, keep))
    words = packing.words(batch, head, row, key)
    whole = (words == packing.ones).flatten(1).all(1)
    keep = keep & (words != 0).flatten(1).any(1)
    partial = ~whole | (row == key)
    masks = torch.where(partial, torch.arange(len(row), device=row.device), -1)
    shape = documents.shape[0], packing.shape[1], packing.rows
    rows = (batch * shape[1] + head) * shape[2] + row
    packed = ((words ^ 0x80000000) - 0x80000000).to(torch.int32)
    by_query, by_key = both_lists(shape, rows, key, partial, masks, keep)
    return by_query, by_key, packed, min(packing.rows, 4 * packing.longest + 1)


@dataclass
class _Packing:
    """The layout of one document, and where the documents lie.

    Arrays of rows are ``(B, rows)``; arrays of tokens ``(B, rows, block)``, with -1 behind the sequence.
    """

    block: int
    lists: Lists
    bits: Tensor
    bound: int | None
    documents: Tensor

    def __post_init__(self) -> None:
        batch, length = self.documents.shape
        self.shape = self.lists.full.shape
        block, count = self.block, self.shape[2]
        self.rows = -(-length // block)
        if self.rows > count:
            raise ValueError(f"{length} tokens do not fit into a layout of {count} blocks of {block}.")
        if self.shape[0] not in (1, batch):
            raise ValueError(f"documents has {batch} rows, the layout {self.shape[0]}: expected as many, or 1.")
        self.longest = count if self.bound is None else min(self.bound, count)
        self.ones = WORD if block >= 32 else (1 << block) - 1
        starts = document_starts(self.documents)
        padding = starts.new_full((batch, self.rows * block - length), -1)
        self.starts = torch.cat([starts, padding], 1).view(batch, self.rows, block)
        self.place = torch.arange(block, device=starts.device)  # of a token in its block
        self.first = torch.arange(self.rows, device=starts.device) * block
        self.start = self.starts[:, :, 0]  # of the document of the first token
        self.own = self.starts == self.start[..., None]  # tokens of that document
        self.relative = (self.first - self.start) // block  # its block of the first token
        self.phase = (self.first - self.start) % block
        self._index()

    def _index(self) -> None:
        """Entries sorted by row and key block, for :meth:`_rule`."""
        lists, count = self.lists, self.shape[2]
        rows = entry_rows(lists)
        ids = torch.where(rows < lists.full.numel(), rows * count + lists.blocks, torch.iinfo(torch.int64).max)
        self.ids, order = ids.sort()
        self.masks = lists.masks[order].to(torch.int64)

    def candidates(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Batch row, head, query block and key block of every pair that may be needed, and which of them to keep."""
        heads, block = self.shape[1], self.block
        batch = torch.arange(len(self.start), device=self.start.device)[:, None, None, None]
        head = torch.arange(heads, device=batch.device)[:, None, None]
        row = torch.arange(self.rows, device=batch.device)[:, None]
        slot = torch.arange(self.longest, device=batch.device)
        offsets, columns = self.lists.offsets.to(torch.int64), self.lists.blocks
        found = [(row, torch.ones_like(row, dtype=torch.bool))]  # the diagonal
        crosses = (self.own & (self.phase[..., None] + self.place >= block)).any(-1)
        for second in (0, 1):
            relative = (self.relative[:, None, :, None] + second).clamp(max=self.shape[2] - 1)
            lists = batch.clamp(max=self.shape[0] - 1), head, relative
            begin, end = offsets[lists], offsets[lists[0], head, relative + 1]
            listed = begin + slot < end
            if second:
                listed = listed & crosses[:, None, :, None]
            at = (begin + slot).clamp(max=max(len(columns) - 1, 0))
            column = columns[at].to(torch.int64) if len(columns) else torch.zeros_like(at)
            token = self.start[:, None, :, None] + column * block
            found.append((token // block, listed))
            found.append((token // block + 1, listed & (token % block > 0)))
        shape = len(self.start), heads, self.rows
        key = torch.cat([x.expand(*shape, -1) for x, _ in found], -1)
        keep = torch.cat([x.expand(*shape, -1) for _, x in found], -1).flatten() & (key <= row).flatten()
        flat = [x.expand(key.shape).flatten() for x in (batch, head, row)]
        ids = ((flat[0] * heads + flat[1]) * self.rows + flat[2]) * (self.rows + 1) + key.flatten().clamp(max=self.rows)
        return flat[0], flat[1], flat[2], key.flatten(), keep & first_of_each(ids, keep)

    def words(self, batch: Tensor, head: Tensor, row: Tensor, key: Tensor) -> Tensor:
        """Bits of pairs of absolute blocks, ``(N, block, words)`` in the lower 32 bits of int64."""
        block = self.block
        at = batch, row
        distance = key * block - self.start[at]  # of the key block from the start of the document
        column = torch.div(distance, block, rounding_mode="floor")
        place = self.phase[at][:, None] + self.place
        sides = []
        for right in (0, 1):
            upper, lower = (self._rule(batch, head, self.relative[at] + below, column + right) for below in (0, 1))
            rule = torch.where(place >= block, lower[:, None], upper[:, None])
            sides.append(self._bits(rule, place % block))
        seen = _shifted(sides[0], sides[1], (distance - column * block)[:, None], block)
        heads = self.shape[1]
        later = self._later()[(batch * heads + head) * self.rows + row] * (row == key)[:, None, None]
        return torch.where(self.own[at][..., None], seen, later)

    def _later(self) -> Tensor:
        """Bits of all diagonal blocks, for the tokens of documents that begin inside."""
        sizes = [torch.arange(n, device=self.first.device) for n in (len(self.start), self.shape[1], self.rows)]
        batch, head, row = (x.flatten() for x in torch.meshgrid(*sizes, indexing="ij"))
        zero, block = torch.zeros_like(row), self.block
        shift = self.starts[batch, row] - self.first[row][:, None]
        inside = shift > 0
        rule = torch.where(inside, self._rule(batch, head, zero, zero)[:, None], -2)
        bits = self._bits(rule, (self.place - shift) % block)
        return _shifted(torch.zeros_like(bits), bits, torch.where(inside, block - shift, 0), block)

    def _rule(self, batch: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
        """Row of the bits of a pair of relative blocks, -1 if it is read whole, -2 if it is not listed."""
        batches, heads, count = self.shape
        lists = batch.clamp(max=batches - 1) * heads + head
        ids = (lists * count + row) * count + column
        if not len(self.ids):
            return torch.full_like(ids, -2)
        at = torch.searchsorted(self.ids, ids).clamp(max=len(self.ids) - 1)
        listed = (self.ids[at] == ids) & (row < count) & (column >= 0) & (column < count)
        return torch.where(listed, self.masks[at], -2)

    def _bits(self, rule: Tensor, place: Tensor) -> Tensor:
        """Words of a row of relative blocks: ``(N, block) -> (N, block, words)``."""
        words = self.bits.shape[-1]
        plain = torch.where(rule == -1, self.ones, 0)[..., None].expand(*rule.shape, words)
        if not len(self.bits):
            return plain
        stored = self.bits[rule.clamp(min=0), place].to(torch.int64) & self.ones
        return torch.where((rule >= 0)[..., None], stored, plain)


def _shifted(left: Tensor, right: Tensor, skip: Tensor, block: int) -> Tensor:
    """The ``block`` bits that begin ``skip`` bits into the bits of two blocks beside each other."""
    if block < 32:
        return ((left | right << block) >> skip[..., None]) & ((1 << block) - 1)
    words = left.shape[-1]
    both = torch.cat([left, right], -1)
    at = torch.arange(words, device=skip.device) + (skip // 32)[..., None]
    at = at.expand(*both.shape[:-1], words)
    shift = (skip % 32)[..., None]
    return (both.gather(-1, at) >> shift | both.gather(-1, (at + 1)) << (32 - shift)) & WORD
