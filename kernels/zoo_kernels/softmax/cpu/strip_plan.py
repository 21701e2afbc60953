"""Plans of how long sequences are cut into strips, for :mod:`zoo_kernels.softmax.cpu.strips`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from zoo_kernels.layout import BlockLayout
from zoo_kernels.layout.lists import entry_rows
from zoo_kernels.softmax.cpu.tiles import hidden
from zoo_kernels.softmax.mask import KeyRule

RUNS = 64  # of equally long lists in a head, from which on they are left to the tiles of lists
NUMBERS = 1 << 20  # of the keys of a call: they and their gradients stay in a cache


@dataclass(frozen=True)
class Strips:
    """Consecutive strips of queries with overlapping ranges of keys: strip s reads keys from ``start + s * size`` on.

    Attributes:
        first: first query of the first strip.
        size: queries per strip.
        count: number of strips.
        start: first key of the first strip.
        keys: keys per strip.
        mask: ``(size, keys)``, added to the scores of every strip; None: all keys are read.
    """

    first: int
    size: int
    count: int
    start: int
    keys: int
    mask: Tensor | None

    def rows(self, x: Tensor) -> Tensor:
        """Returns the queries ``(count, H, size, X)`` of one batch row ``(T, H, X)``."""
        part = x[self.first : self.first + self.count * self.size]
        return part.unflatten(0, (self.count, self.size)).transpose(1, 2)

    def columns(self, x: Tensor) -> Tensor:
        """Returns the keys ``(count, G, keys, X)`` of one batch row, as a view."""
        part = x[self.start :]
        shape = self.count, x.shape[1], self.keys, x.shape[2]
        strides = self.size * x.stride(0), x.stride(1), x.stride(0), x.stride(2)
        return part.as_strided(shape, strides, part.storage_offset())

    def add(self, x: Tensor, part: Tensor) -> None:
        """Adds gradients ``(count, G, keys, X)`` to the keys of one batch row, in pieces that do not overlap."""
        part = part.transpose(1, 2)
        if self.count == 1:
            x[self.start : self.start + self.keys] += part[0]
            return
        for skip in range(0, self.keys, self.size):
            begin = self.start + skip
            place = x[begin : begin + self.count * self.size].unflatten(0, (self.count, self.size))
            place += part[:, skip : skip + self.size]


@dataclass(frozen=True)
class Gathered:
    """Consecutive blocks of queries of one head, each with the same number of whole key blocks.

    Attributes:
        first: first query.
        size: tokens of a block.
        blocks: ``(n, L)`` key blocks of each block of queries.
        mask: always None: all keys are read.
    """

    first: int
    size: int
    blocks: Tensor
    mask: None = None

    def rows(self, x: Tensor) -> Tensor:
        """Returns the queries ``(n, 1, size, X)``, a view; the last block of a sequence may be shorter."""
        part = x[self.first : self.first + len(self.blocks) * self.size]
        return part.unflatten(0, (len(self.blocks), -1)).transpose(1, 2)

    def columns(self, x: Tensor) -> Tensor:
        """Gathers a copy of the keys, ``(n, 1, L * size, X)``."""
        part = self._blocks(x).index_select(0, self.blocks.flatten())
        return part.view(len(self.blocks), 1, -1, x.shape[-1])

    def add(self, x: Tensor, part: Tensor) -> None:
        """Adds gradients to the keys, in a contiguous array: PyTorch is slow at adding to blocks of a strided one."""
        wide = self.size * x.shape[-1]
        self._blocks(x).view(-1, wide).index_add_(0, self.blocks.flatten(), part.reshape(-1, wide))

    def _blocks(self, x: Tensor) -> Tensor:
        whole = len(x) // self.size
        return x[: whole * self.size, 0].unflatten(0, (whole, self.size))


Piece = Strips | Gathered


@dataclass(frozen=True)
class StripPlan:
    """A cut of attention into parts with disjoint sets of keys.

    Attributes:
        pieces: strips of the band and, behind each of its ranges, the columns of the same queries, which are then still
            in the CPU's cache; True for the first piece of some queries.
        gathered: for each query head, the blocks that only this head reads.
        rest: layout of the blocks that neither serves, or None.
    """

    pieces: list[tuple[Strips, bool]]
    gathered: list[list[Gathered]]
    rest: BlockLayout | None


def _interleave(band: list[Strips], columns: list[Strips]) -> list[tuple[Strips, bool]]:
    pieces = []
    for part in band:
        pieces.append((part, True))
        for column in columns:
            first, last = max(part.first, column.first), part.first + part.count * part.size
            if first < last:
                mask = None if column.mask is None else column.mask[first - column.first : last - column.first]
                mask = mask if mask is not None and mask.any() else None
                pieces.append((Strips(first, last - first, 1, column.start, column.keys, mask), False))
    return pieces


def _band(length: int, size: int, reach: int, seen: Tensor, width: int) -> list[Strips]:
    """Strips of ``size`` queries that read ``reach`` keys before their own; ``seen (size, reach + size)`` bool."""
    mask = torch.zeros(seen.shape, dtype=torch.float32).masked_fill_(~seen, hidden(torch.float32))
    early = min(reach // size, length // size)  # strips whose keys begin before the sequence
    ranges = [Strips(i * size, size, 1, 0, (i + 1) * size, mask[:, reach - i * size :]) for i in range(early)]
    most = max(NUMBERS // ((reach + size) * width), 1)
    full = length // size
    for first in range(early, full, most):
        count = min(most, full - first)
        ranges.append(Strips(first * size, size, count, first * size - reach, reach + size, mask))
    tail, left = full * size, length % size
    if left:
        start = max(tail - reach, 0)
        ranges.append(Strips(tail, left, 1, start, length - start, mask[:left, reach - (tail - start) : reach + left]))
    return ranges


def of_window(k: Tensor, rule: KeyRule) -> StripPlan:
    """Plans strips for a rule with a window, and a column for its sink tokens."""
    length, window = k.shape[1], rule.window
    assert window is not None
    size = min(max(16, 1 << window.bit_length() >> 3), 256)
    reach = -(-(window - 1) // size) * size
    distance = torch.arange(size)[:, None] - torch.arange(-reach, size)
    band = _band(length, size, reach, (distance >= 0) & (distance < window), k.shape[2] * k.shape[3])
    if not rule.sink_tokens:
        return StripPlan(_interleave(band, []), [], None)
    rows = length - window
    far = torch.arange(window, length)[:, None] - torch.arange(rule.sink_tokens) >= window
    mask = torch.zeros(far.shape, dtype=torch.float32).masked_fill_(~far, hidden(torch.float32))
    return StripPlan(_interleave(band, [Strips(window, rows, 1, 0, rule.sink_tokens, mask)]), [], None)


def of_layout(k: Tensor, layout: BlockLayout) -> StripPlan | None:
    """Plans strips of the band that all query blocks share, columns that all later ones read, and a remaining layout.

    Args:
        k: keys ``(B, Tk, G, D)``.
        layout: one for all batch rows.

    Returns:
        None if the layout has no band of at least two and at most a quarter of the blocks.
    """
    heads, blocks, block = layout.shape[1], -(-k.shape[1] // layout.block), layout.block
    lists = layout.by_query
    rows, keys = entry_rows(lists), lists.blocks.long()
    head, query = rows // layout.shape[2], rows % layout.shape[2]
    plain = (rows < lists.full.numel()) & (query < blocks) & (lists.masks < 0)
    possible = torch.arange(blocks, 0, -1) * heads  # rows that can list a block so far away, or that block
    by_distance = torch.bincount((query - keys)[plain], minlength=blocks)
    wide = int((by_distance == possible).long().cumprod(0).sum())
    if wide < 2 or wide > blocks // 4:
        return None
    common = plain & (query - keys >= wide)
    listed = torch.bincount(keys[common], minlength=blocks)
    column = ((listed == possible - wide * heads) & (listed > 0)).nonzero()[:, 0].tolist()
    size = block if wide < 4 else 2 * block
    reach = -(-((wide - 1) * block) // size) * size
    t, j = torch.arange(size)[:, None], torch.arange(-reach, size)
    seen = (j <= t) & (t // block - torch.div(j, block, rounding_mode="floor") < wide)
    band = _band(k.shape[1], size, reach, seen, k.shape[2] * k.shape[3])
    columns = []
    for j0 in column:
        first = (j0 + wide) * block
        columns.append(Strips(first, k.shape[1] - first, 1, j0 * block, block, None))
    pieces = _interleave(band, columns)
    used = (rows < lists.full.numel()) & (query < blocks)
    left = used & ~(plain & (query - keys < wide)) & ~torch.isin(keys, torch.tensor(column, dtype=torch.long))
    at = left.nonzero()[:, 0]
    if not len(at):
        return StripPlan(pieces, [], None)
    if plain[at].all():  # none of them is on the diagonal, which belongs to the band
        entries = head[at], query[at], keys[at]
        gathered = _gather(entries, (heads, blocks, block), k.shape[1], k.shape[3])
        if gathered:
            return StripPlan(pieces, gathered, None)
    masks, bits = (lists.masks[at], layout.bits) if len(layout.bits) else (None, None)
    pairs = torch.zeros_like(at), head[at], query[at], keys[at]
    rest = BlockLayout.from_pairs(
        block, layout.shape[2], *pairs, masks, bits, heads=heads, longest=layout.longest
    )  # fmt: skip
    return StripPlan(pieces, [], rest)


def _gather(
    entries: tuple[Tensor, Tensor, Tensor], shape: tuple[int, int, int], length: int, width: int
) -> list[list[Gathered]]:
    """Returns pieces of each head for entries that are read whole; nothing if they are too many.

    Args:
        entries: head, query block and key block, ``(N,)`` each, sorted by head and query block.
        shape: heads, blocks and tokens of a block.
        length: number of tokens.
        width: width of a head.
    """
    heads, blocks, block = shape
    head, query, keys = entries
    counts = torch.bincount(head * blocks + query, minlength=heads * blocks)
    ends, found = counts.cumsum(0).tolist(), []
    for number, row in enumerate(counts.view(heads, blocks)):
        sizes, runs = torch.unique_consecutive(row, return_counts=True)
        if len(runs) > RUNS:
            return []
        pieces, at = [], 0
        for size, run in zip(sizes.tolist(), runs.tolist()):
            most = max(NUMBERS // (4 * block * width * max(size, 1)), 1)
            whole = min(at + run, length // block)
            spans = [(i, min(i + most, whole)) for i in range(at, whole, most)]
            spans += [(whole, at + run)] if whole < at + run else []
            for first, last in spans if size else []:
                end = ends[number * blocks + last - 1]
                chosen = keys[end - size * (last - first) : end].view(-1, size)
                pieces.append(Gathered(first * block, block, chosen))
            at += run
        found.append(pieces)
    return found
