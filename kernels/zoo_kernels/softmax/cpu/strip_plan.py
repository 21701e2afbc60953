"""How long sequences are cut into strips: what zoo_kernels.softmax.cpu.strips works on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from zoo_kernels.layout import BlockLayout
from zoo_kernels.layout.lists import entry_rows
from zoo_kernels.softmax.cpu.fused import fuses
from zoo_kernels.softmax.cpu.tiles import hidden
from zoo_kernels.softmax.mask import KeyRule

SHORTEST = 2048  # tokens from which on strips pay
RUNS = 64  # of equally long lists in a head, from which on they are left to the tiles of lists
NUMBERS = 1 << 20  # of the keys of a call: they and their gradients stay in a cache


@dataclass(frozen=True)
class Range:
    """Strips of ``size`` queries from ``first`` on, ``count`` of them; strip s reads keys from ``start + s * size`` on.

    ``mask (size, keys)`` is added to the scores of every strip; None: all is read.
    """

    first: int
    size: int
    count: int
    start: int
    keys: int
    mask: Tensor | None

    def rows(self, x: Tensor) -> Tensor:
        """Queries ``(count, H, size, X)`` of one batch row ``(T, H, X)``."""
        part = x[self.first : self.first + self.count * self.size]
        return part.unflatten(0, (self.count, self.size)).transpose(1, 2)

    def columns(self, x: Tensor) -> Tensor:
        """Keys ``(count, G, keys, X)`` of one batch row, a view."""
        part = x[self.start :]
        shape = self.count, x.shape[1], self.keys, x.shape[2]
        strides = self.size * x.stride(0), x.stride(1), x.stride(0), x.stride(2)
        return part.as_strided(shape, strides, part.storage_offset())

    def add(self, x: Tensor, part: Tensor) -> None:
        """Adds gradients ``(count, G, keys, X)`` to the keys of one batch row; pieces of one place do not overlap."""
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
    """Consecutive blocks of queries of one head ``(T, 1, X)``, each with as many whole blocks of keys ``(n, L)``."""

    first: int
    size: int
    blocks: Tensor
    mask: None = None

    def rows(self, x: Tensor) -> Tensor:
        """Queries ``(n, 1, size, X)``, a view; the last block of a sequence may be shorter."""
        part = x[self.first : self.first + len(self.blocks) * self.size]
        return part.unflatten(0, (len(self.blocks), -1)).transpose(1, 2)

    def columns(self, x: Tensor) -> Tensor:
        """A copy of their keys, ``(n, 1, L * size, X)``."""
        part = self._blocks(x).index_select(0, self.blocks.flatten())
        return part.view(len(self.blocks), 1, -1, x.shape[-1])

    def add(self, x: Tensor, part: Tensor) -> None:
        """Adds gradients to the keys, in a contiguous array: PyTorch is slow at adding to blocks of a strided one."""
        wide = self.size * x.shape[-1]
        self._blocks(x).view(-1, wide).index_add_(0, self.blocks.flatten(), part.reshape(-1, wide))

    def _blocks(self, x: Tensor) -> Tensor:
        whole = len(x) // self.size
        return x[: whole * self.size, 0].unflatten(0, (whole, self.size))


Piece = Range | Gathered


@dataclass(frozen=True)
class Plan:
    """Parts whose keys are disjoint.

    Attributes:
        pieces: the band and, behind each of its ranges, the columns of the same queries, which are then in a cache;
            True for the first piece of some queries.
        gathered: of each query head, blocks that are its own; ``rest`` is what is left to lists.
    """

    pieces: list[tuple[Range, bool]]
    gathered: list[list[Gathered]]
    rest: BlockLayout | None


def _interleave(band: list[Range], columns: list[Range]) -> list[tuple[Range, bool]]:
    pieces = []
    for part in band:
        pieces.append((part, True))
        for column in columns:
            first, last = max(part.first, column.first), part.first + part.count * part.size
            if first < last:
                mask = None if column.mask is None else column.mask[first - column.first : last - column.first]
                mask = mask if mask is not None and mask.any() else None
                pieces.append((Range(first, last - first, 1, column.start, column.keys, mask), False))
    return pieces


def _band(length: int, size: int, reach: int, seen: Tensor, width: int) -> list[Range]:
    """Strips of ``size`` queries that read ``reach`` keys before their own; ``seen (size, reach + size)`` bool."""
    mask = torch.zeros(seen.shape, dtype=torch.float32).masked_fill_(~seen, hidden(torch.float32))
    early = min(reach // size, length // size)  # strips whose keys begin before the sequence
    ranges = [Range(i * size, size, 1, 0, (i + 1) * size, mask[:, reach - i * size :]) for i in range(early)]
    most = max(NUMBERS // ((reach + size) * width), 1)
    full = length // size
    for first in range(early, full, most):
        count = min(most, full - first)
        ranges.append(Range(first * size, size, count, first * size - reach, reach + size, mask))
    tail, left = full * size, length % size
    if left:
        start = max(tail - reach, 0)
        ranges.append(Range(tail, left, 1, start, length - start, mask[:left, reach - (tail - start) : reach + left]))
    return ranges


def _suits(q: Tensor, k: Tensor, v: Tensor) -> bool:
    alike = q.dtype == k.dtype == v.dtype and fuses(q, v) and q.shape[1] == k.shape[1]
    return alike and q.shape[1] >= SHORTEST and all(x.stride(-1) == 1 for x in (q, k, v))


def plan(q: Tensor, k: Tensor, v: Tensor, rule: KeyRule, layout: BlockLayout | None) -> Plan | None:
    """Strips for a long window, or for the band that a layout has; None where they do not serve."""
    if not _suits(q, k, v):
        return None
    return _plan_window(k, rule) if layout is None else _plan_layout(k, layout)


def _plan_window(k: Tensor, rule: KeyRule) -> Plan | None:
    """Strips of a window, and the sinks as a column; None where strips do not serve."""
    length, window = k.shape[1], rule.window
    if window is None or not 0 < window <= length // 4 or rule.documents is not None:
        return None
    size = min(max(16, 1 << window.bit_length() >> 3), 256)
    reach = -(-(window - 1) // size) * size
    distance = torch.arange(size)[:, None] - torch.arange(-reach, size)
    band = _band(length, size, reach, (distance >= 0) & (distance < window), k.shape[2] * k.shape[3])
    if not rule.sink_tokens:
        return Plan(_interleave(band, []), [], None)
    rows = length - window
    far = torch.arange(window, length)[:, None] - torch.arange(rule.sink_tokens) >= window
    mask = torch.zeros(far.shape, dtype=torch.float32).masked_fill_(~far, hidden(torch.float32))
    return Plan(_interleave(band, [Range(window, rows, 1, 0, rule.sink_tokens, mask)]), [], None)


def _plan_layout(k: Tensor, layout: BlockLayout) -> Plan | None:
    """Strips of the blocks that all rows list beside their own, columns that all later rows list, and the rest."""
    if layout.shape[0] != 1:
        return None
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
        columns.append(Range(first, k.shape[1] - first, 1, j0 * block, block, None))
    pieces = _interleave(band, columns)
    used = (rows < lists.full.numel()) & (query < blocks)
    left = used & ~(plain & (query - keys < wide)) & ~torch.isin(keys, torch.tensor(column, dtype=torch.long))
    at = left.nonzero()[:, 0]
    if not len(at):
        return Plan(pieces, [], None)
    if plain[at].all():  # none of them is on the diagonal, which belongs to the band
        entries = head[at], query[at], keys[at]
        gathered = _gather(entries, (heads, blocks, block), k.shape[1], k.shape[3])
        if gathered:
            return Plan(pieces, gathered, None)
    masks, bits = (lists.masks[at], layout.bits) if len(layout.bits) else (None, None)
    pairs = torch.zeros_like(at), head[at], query[at], keys[at]
    rest = BlockLayout.from_pairs(
        block, layout.shape[2], *pairs, masks, bits, heads=heads, longest=layout.longest
    )  # fmt: skip
    return Plan(pieces, [], rest)


def _gather(
    entries: tuple[Tensor, Tensor, Tensor], shape: tuple[int, int, int], length: int, width: int
) -> list[list[Gathered]]:
    """Pieces of each head for entries (head, query block, key block) that are read whole; nothing if they are too many.

    Args:
        entries: ``(N,)`` each, sorted by head and query block. shape: heads, blocks and tokens of a block.
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
