"""Tiles for causal attention with windows, sink tokens and packed documents."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from zoo_kernels.softmax.cpu import tiles
from zoo_kernels.softmax.cpu.tiles import Grid, Tiles, hidden
from zoo_kernels.softmax.mask import KeyRule, document_starts

QUERY_BLOCK = 256


@dataclass(frozen=True)
class RangeTile:
    """One block of queries of some heads with its keys: the sink tokens and one range of keys."""

    heads: slice
    block: int
    queries: tuple[int, int]
    sink_tokens: int
    key_range: tuple[int, int]
    rule: KeyRule
    batches: Tensor  # (heads,) batch row of each
    bare: bool = False

    def rows(self, x: Tensor) -> Tensor:
        """Returns the block of queries of each head, ``(n, R*c, X)``."""
        return x[self.heads, self.block]

    def write(self, x: Tensor, part: Tensor) -> None:
        """Writes the block of each head back to the places that :meth:`rows` reads."""
        x[self.heads, self.block] = part

    def keys(self, x: Tensor) -> Tensor:
        """Returns the sink tokens and the range of keys of each head, ``(n, s, X)``."""
        near = x[self.heads, slice(*self.key_range)]
        return torch.cat([x[self.heads, : self.sink_tokens], near], 1) if self.sink_tokens else near

    def add(self, x: Tensor, part: Tensor) -> None:
        """Adds gradients to the sink tokens and the range of keys of each head."""
        if self.sink_tokens:
            x[self.heads, : self.sink_tokens] += part[:, : self.sink_tokens]
        x[self.heads, slice(*self.key_range)] += part[:, self.sink_tokens :]

    def rule_(self, scores: Tensor) -> None:
        """Hides keys by the rule; the padding behind the last query is left as it is."""
        (start, stop), (first, last) = self.queries, self.key_range
        skipped = 0
        if self.rule.window is None and self.rule.documents is None:
            skipped = max(start + self.rule.offset - first, 0)  # all queries may read the keys before
        allowed = self.rule.allowed((start, stop), (first + skipped, last), scores.device)
        if self.sink_tokens:
            far = self.rule.allowed((start, stop), (0, self.sink_tokens), scores.device)
            allowed = torch.cat([far, allowed], -1)
        if allowed.shape[0] > 1:
            allowed = allowed[self.batches]
        scores[:, :, : stop - start, skipped:].masked_fill_(~allowed, hidden(scores.dtype))

    def mask(self) -> Tensor | None:
        """Returns None: a tile of one block has no mask that several blocks share."""
        return None

    def bias_gradient(self, grad_scores: Tensor) -> None:
        """Does nothing, since there is no bias."""


@dataclass(frozen=True)
class WindowTile:
    """Consecutive blocks of queries of some heads, each with the sink tokens and its window of keys."""

    heads: slice
    blocks: slice
    block: int
    reach: int
    key_front: int
    rule: KeyRule
    batches: Tensor  # (heads,) batch row of each
    starts: Tensor  # (B or 1, positions) first token of the document of each position
    band: Tensor  # (block, reach + block) what hides the keys outside the window
    bare: bool = False

    def rows(self, x: Tensor) -> Tensor:
        """Returns the blocks of queries of each head, ``(n, R*c, X)``."""
        return x[self.heads, self.blocks].flatten(0, 1)

    def write(self, x: Tensor, part: Tensor) -> None:
        """Writes the blocks of each head back to the places that :meth:`rows` reads."""
        x[self.heads, self.blocks] = part.view(len(self.batches), -1, *part.shape[1:])

    def keys(self, x: Tensor) -> Tensor:
        """Returns overlapping strips of keys, sink tokens first; a view where one head has no sink tokens."""
        part, width = x[self.heads, self._first + self.key_front :], x.shape[-1]
        size = len(self.batches), self._count, self.reach + self.block, width
        strides = part.stride(0), self.block * width, width, 1
        strips = part.as_strided(size, strides, part.storage_offset())
        if self.rule.sink_tokens:
            strips = torch.cat([x[self._at_sink_tokens()].view(*size[:2], -1, width), strips], 2)
        return strips.flatten(0, 1)

    def add(self, x: Tensor, part: Tensor) -> None:
        """Adds gradients of the strips in pieces, chosen so that those of one addition do not overlap."""
        part, sink_tokens = part.unflatten(0, (-1, self._count)), self.rule.sink_tokens
        if sink_tokens:
            x.index_put_(self._at_sink_tokens(), part[:, :, :sink_tokens].flatten(1, 2), accumulate=True)
        for skip in range(0, self.reach + self.block, self.block):
            start = self._first + self.key_front + skip
            pieces = part[:, :, sink_tokens + skip : sink_tokens + skip + self.block].flatten(1, 2)
            x[self.heads, start : start + pieces.shape[1]] += pieces

    def rule_(self, scores: Tensor) -> None:
        """Hides keys outside of the window that are no sink tokens, before the sequence or in another document."""
        shaped = scores.unflatten(0, (-1, self._count))
        if self.rule.sink_tokens or self.rule.documents is not None:
            shaped.masked_fill_(self._hidden()[:, :, None], hidden(scores.dtype))
            return
        shaped.add_(self.band)
        for block, before in enumerate(range(-self._first, 0, -self.block)):
            if block < self._count:
                shaped[:, block, ..., :before] = hidden(scores.dtype)

    def mask(self) -> Tensor | None:
        """Returns the band of the window, if nothing else hides keys."""
        plain = not self.rule.sink_tokens and self.rule.documents is None and self._first >= 0
        return self.band if plain else None

    def bias_gradient(self, grad_scores: Tensor) -> None:
        """Does nothing, since there is no bias."""

    @property
    def _count(self) -> int:
        return self.blocks.stop - self.blocks.start

    @property
    def _first(self) -> int:
        """Position of the first key of the first strip; negative before the sequence."""
        return self.blocks.start * self.block + self.rule.offset - self.reach

    def _sink_tokens(self) -> Tensor:
        """Positions of the sinks that the first query of each block reads: ``(B or 1, blocks, sink_tokens)``."""
        first = self.starts[:, self._first + self.reach :: self.block][:, : self._count]
        return first[..., None] + torch.arange(self.rule.sink_tokens, device=first.device)

    def _at_sink_tokens(self) -> tuple[Tensor, Tensor]:
        """Where the sinks are in the padded keys of all heads."""
        at = (self._sink_tokens() + self.key_front).flatten(1).expand(len(self.starts), -1)
        heads = torch.arange(self.heads.start, self.heads.stop, device=at.device)
        return heads[:, None], at[self.batches if len(at) > 1 else torch.zeros_like(self.batches)]

    def _hidden(self) -> Tensor:
        """``(heads or 1, blocks, block, sink_tokens + reach + block)`` bool."""
        device = self.starts.device
        blocks = self._first + self.block * torch.arange(self._count, device=device)[:, None]
        j = blocks + torch.arange(self.reach + self.block, device=device)
        t = blocks + self.reach + torch.arange(self.block, device=device)
        start = self.starts[:, t].unsqueeze(-1)
        j, t = j[None, :, None], t[None, :, :, None]
        near = (j >= start) & (j <= t) & ((j > t - (self.rule.window or 0)) | (j < start + self.rule.sink_tokens))
        if self.rule.sink_tokens:
            j = self._sink_tokens()[:, :, None]
            far = (j >= start) & (j < start + self.rule.sink_tokens) & (j < blocks[None, :, None])
            near = torch.cat([far, near], -1)
        return ~(near if len(near) == 1 else near[self.batches])


def windows(q: Tensor, k: Tensor, rule: KeyRule) -> tuple[Grid, Tiles]:
    """Cuts the queries into consecutive blocks, each with the keys before it, for a rule with a short window."""
    assert rule.window is not None
    fold, block = q.shape[2] // k.shape[2], min(max(16, 1 << rule.window.bit_length() >> 3), QUERY_BLOCK)
    blocks = -(-q.shape[1] // block)
    reach = -(-max(rule.window - 1, 0) // block) * block
    front = max(reach - rule.offset, 0)
    grid = Grid(fold, block, blocks, 0, front, front + blocks * block + rule.offset + rule.sink_tokens)
    return grid, partial(_windows, grid, reach, k.shape[2], rule, *_common(grid, reach, rule, k))


def ranges(q: Tensor, k: Tensor, rule: KeyRule) -> tuple[Grid, Tiles]:
    """Cuts the queries into blocks, each with the range of its keys, for any rule."""
    queries, fold = q.shape[1], q.shape[2] // k.shape[2]
    count = max(-(-queries // QUERY_BLOCK), 1)
    grid = Grid(fold, max(-(-queries // count), 1), count, 0, 0, k.shape[1])
    return grid, partial(_ranges, queries, k.shape[2], k.device, grid, rule, _begins(grid, rule))


def _begins(grid: Grid, rule: KeyRule) -> list[int]:
    """Where the earliest document of each block's first query begins; 0 where asking would wait for a device."""
    if rule.documents is None or rule.documents.device.type != "cpu" or not rule.documents.numel():
        return [0] * grid.blocks
    first = (torch.arange(grid.blocks) * grid.block + rule.offset).clamp(max=rule.documents.shape[1] - 1)
    found: list[int] = document_starts(rule.documents)[:, first].amin(0).tolist()
    return found


def _heads(first: int, last: int, step: int, groups: int, device: torch.device) -> Iterator[tuple[slice, Tensor]]:
    """Key heads counted from the first one, and the batch row of each."""
    for start in range(first, last, step):
        some = torch.arange(start, min(start + step, last), device=device)
        yield slice(start - first, start - first + len(some)), some // groups


def _ranges(
    queries: int,
    groups: int,
    device: torch.device,
    grid: Grid,
    rule: KeyRule,
    begins: list[int],
    first: int,
    last: int,
) -> Iterator[RangeTile]:
    for block in range(grid.blocks):
        span = block * grid.block, min((block + 1) * grid.block, queries)
        sink_tokens, *keys = rule.key_range(*span, begins[block])
        count = sink_tokens + keys[1] - keys[0]
        if span[0] >= span[1] or not count:
            continue
        step = max(tiles.ELEMENTS // (grid.fold * grid.block * count), 1)
        for heads, batches in _heads(first, last, step, groups, device):
            yield RangeTile(heads, block, span, sink_tokens, (keys[0], keys[1]), rule, batches)


def _common(grid: Grid, reach: int, rule: KeyRule, k: Tensor) -> tuple[Tensor, Tensor]:
    """First token of the document of each position, and what hides the keys outside the window."""
    positions = grid.blocks * grid.block + rule.offset
    starts = torch.zeros(1, 1, dtype=torch.int64, device=k.device).expand(1, positions)
    if rule.documents is not None:
        known = document_starts(rule.documents)
        starts = torch.cat([known, known[:, -1:].expand(-1, positions - known.shape[1])], 1)
    distance = torch.arange(-reach, grid.block, device=k.device) - torch.arange(grid.block, device=k.device)[:, None]
    seen = (distance <= 0) & (distance > -(rule.window or 0))
    band = torch.zeros(seen.shape, dtype=torch.promote_types(k.dtype, torch.float32), device=k.device)
    return starts, band.masked_fill_(~seen, hidden(band.dtype))


def _windows(
    grid: Grid, reach: int, groups: int, rule: KeyRule, starts: Tensor, band: Tensor, first: int, last: int
) -> Iterator[WindowTile]:
    fits = max(tiles.ELEMENTS // (grid.fold * grid.block * (reach + grid.block)), 1)
    heads, blocks = max(fits // max(grid.blocks, 1), 1), max(min(fits, grid.blocks), 1)
    for some, batches in _heads(first, last, heads, groups, starts.device):
        early = min(-(-max(reach - rule.offset, 0) // grid.block), grid.blocks)  # whose keys begin before the sequence
        for start in (*range(0, early, blocks), *range(early, grid.blocks, blocks)):
            part = slice(start, min(start + blocks, early if start < early else grid.blocks))
            yield WindowTile(some, part, grid.block, reach, grid.key_front, rule, batches, starts, band)
