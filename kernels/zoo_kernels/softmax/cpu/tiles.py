"""Exact attention tile by tile in plain PyTorch (after FlashAttention-2, Dao 2023, arXiv:2307.08691).

A tile is a batch of blocks of queries with all the keys that each of them may read, so that one softmax finishes it.
The backward pass computes the weights again: memory is linear in T. Query heads that share a key head are folded into
the query rows, so that keys are never repeated. On CPUs in fp32, PyTorch's fused attention works on each tile.

Letters: G key heads, R query heads per key head, c queries of a block, n blocks of a tile, s keys of each.
Arrays inside: queries ``(B*G, blocks, R*c, D)``, keys ``(B*G, Tk, D)``, both padded, in fp32 or better.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo_kernels.softmax.cpu.fused import fused_backward, fused_forward, fuses

ELEMENTS = 1 << 19  # scores of a tile: few enough for the cache, enough for few calls
PARALLEL = 1 << 24  # pairs of tokens of a call from which on threads pay
PART = 1 << 19  # numbers of the keys that are worked on at a time: they and their gradients then share a cache


def hidden(dtype: torch.dtype) -> float:
    """Score that hides a key: below any real score, since those are at most a quarter of the largest number.

    It is finite, so that a row without a key has weights that are numbers; they are multiplied by zero.
    """
    return torch.finfo(dtype).min / 2


class Tile(Protocol):
    """Blocks of queries with all the keys that they may read."""

    @property
    def bare(self) -> bool:
        """Whether all queries read all of the keys."""

    def rows(self, x: Tensor) -> Tensor:
        """Returns the queries of the tile, ``(n, R*c, X)``."""

    def write(self, x: Tensor, part: Tensor) -> None:
        """Writes ``part`` ``(n, R*c, X)`` to the places that :meth:`rows` reads."""

    def keys(self, x: Tensor) -> Tensor:
        """Returns the keys of the tile, ``(n, s, X)``."""

    def add(self, x: Tensor, part: Tensor) -> None:
        """Adds gradients of the keys ``(n, s, X)`` to the places that :meth:`keys` reads."""

    def rule_(self, scores: Tensor) -> None:
        """Adds biases to the scores ``(n, R, c, s)`` in place and hides keys that may not be read."""

    def mask(self) -> Tensor | None:
        """Returns what :meth:`rule_` adds to zeros ``(c, s)`` if it is the same for all blocks and heads, else None."""

    def bias_gradient(self, grad_scores: Tensor) -> None:
        """Collects the gradient of the biases from the gradient of the scores ``(n, R, c, s)``."""


@dataclass(frozen=True)
class Grid:
    """How queries are cut into blocks, and how queries and keys are padded.

    ``front`` and ``key_front`` count the padding before the first token.
    """

    fold: int
    block: int
    blocks: int
    front: int
    key_front: int
    keys: int

    def split(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Cuts queries ``(B, Tq, H, X)`` into padded blocks ``(B*G, blocks, R*c, X)``."""
        batch, length, heads, width = x.shape
        groups = heads // self.fold
        padding = self.front, self.blocks * self.block - self.front - length
        x = F.pad(x.to(dtype), (0, 0, 0, 0, *padding)) if any(padding) else x.to(dtype)
        x = x.reshape(batch, self.blocks, self.block, groups, self.fold, width)
        x = x.permute(0, 3, 1, 4, 2, 5).reshape(batch * groups, self.blocks, -1, width)
        return x.contiguous()

    def join(self, x: Tensor, out: Tensor) -> None:
        """Writes blocks back into ``out`` ``(B, Tq, H, X)``; inverse of :meth:`split`."""
        batch, length, heads, _ = out.shape
        x = x.reshape(batch, heads // self.fold, self.blocks, self.fold, self.block, -1)
        x = x.permute(0, 2, 4, 1, 3, 5)
        if length == self.blocks * self.block:
            out.unflatten(1, (self.blocks, self.block)).unflatten(3, (-1, self.fold)).copy_(x)
        else:
            x = x.reshape(batch, self.blocks * self.block, heads, -1)
            out.copy_(x[:, self.front : self.front + length])

    def split_keys(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Pads keys ``(B, Tk, G, X)`` to ``(B*G, keys, X)``."""
        batch, length, groups, width = x.shape
        x = x.to(dtype).transpose(1, 2)
        x = F.pad(x, (0, 0, self.key_front, self.keys - self.key_front - length))
        return x.reshape(batch * groups, self.keys, width).contiguous()

    def join_keys(self, x: Tensor, out: Tensor) -> None:
        """Writes padded keys back into ``out`` ``(B, Tk, G, X)``; inverse of :meth:`split_keys`."""
        batch, length, groups, width = out.shape
        x = x.view(batch, groups, self.keys, width)[:, :, self.key_front : self.key_front + length]
        out.copy_(x.transpose(1, 2))


Part = tuple[slice, slice]  # batch rows and key heads
Tiles = Callable[[int, int], Iterable[Tile]]  # those of a range of the B*G key heads, which they count from its start


def _parts(k: Tensor) -> Iterator[tuple[int, int, Part]]:
    """Ranges of the B*G key heads: first, last, their batch rows and their heads."""
    batch, length, groups, width = k.shape
    fitting = max(PART // max(length * width, 1), 1)
    rows, heads = max(fitting // groups, 1), min(fitting, groups)
    for row in range(0, batch, rows):
        below = min(row + rows, batch)
        for head in range(0, groups, heads):
            last = min(head + heads, groups)
            yield row * groups + head, (below - 1) * groups + last, (slice(row, below), slice(head, last))


def each_part(work: Callable[..., None], parts: list[Any], parallel: bool) -> None:
    """Runs ``work(*part)`` for all parts, with ``parallel`` on as many threads as PyTorch has.

    PyTorch's own threads synchronize after every operation; here they do once. Parts share no sum, so the result does
    not depend on their order.
    """
    threads = torch.get_num_threads()
    if not parallel or threads == 1 or len(parts) < threads:
        for part in parts:
            work(*part)
        return

    def one_of(part: Any) -> None:
        torch.set_num_threads(1)  # of this thread
        with torch.no_grad():
            work(*part)

    try:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(one_of, parts))
    finally:
        torch.set_num_threads(threads)  # also for threads to come


def pays(q: Tensor, k: Tensor) -> bool:
    """Returns whether threads are worth their cost for arrays of this size."""
    return q.device.type == "cpu" and q.shape[0] * q.shape[1] * q.shape[2] * k.shape[1] >= PARALLEL


def _of(x: Tensor, which: Part, groups: int) -> Tensor:
    """The heads of ``(B, T, H or G, X)`` that belong to some key heads."""
    fold = x.shape[2] // groups
    rows, heads = which
    return x[rows, :, heads.start * fold : heads.stop * fold]


def _mask(tile: Tile, rows: Tensor, keys: Tensor, fold: int) -> Tensor | None:
    """What the rule adds to the scores, ``(n or 1, 1, R*c, s)``; None for nothing."""
    if tile.bare:
        return None
    common = tile.mask()
    if common is not None:
        return common.to(rows.dtype).repeat(fold, 1)[None, None]
    mask = rows.new_zeros(rows.shape[0], rows.shape[1], keys.shape[1])
    tile.rule_(mask.unflatten(1, (fold, -1)))
    return mask[:, None]


def _weigh(tile: Tile, query: Tensor, key: Tensor, fold: int, scale: float) -> tuple[Tensor, Tensor]:
    """Weights of the keys of a tile ``(n, R*c, s)``, and the highest score of each row."""
    scores = tile.rows(query).mul(scale) @ tile.keys(key).mT
    tile.rule_(scores.unflatten(1, (fold, -1)))
    return scores.softmax(-1), scores.amax(-1, keepdim=True)


def attend(q: Tensor, k: Tensor, v: Tensor, grid: Grid, tiles: Tiles, scale: float) -> tuple[Tensor, Tensor]:
    """Computes attention tile by tile.

    Returns:
        Output ``(B, Tq, H, E)`` in the dtype of q and log-sum-exp ``(B, Tq, H)``; rows without a key give 0 and -inf.
    """
    dtype, groups = torch.promote_types(q.dtype, torch.float32), k.shape[2]
    output = torch.empty(*q.shape[:3], v.shape[-1], dtype=q.dtype, device=q.device)
    lse = torch.empty(*q.shape[:3], 1, dtype=dtype, device=q.device)

    def work(first: int, last: int, which: Part) -> None:
        query = grid.split(_of(q, which, groups), dtype)
        key, value = (grid.split_keys(_of(x, which, groups), dtype) for x in (k, v))
        out = query.new_zeros(*query.shape[:3], v.shape[-1])
        total = query.new_full((*query.shape[:3], 1), -torch.inf)
        for tile in tiles(first, last):
            _attend_tile(tile, (query, key, value), out, total, grid.fold, scale)
        grid.join(out, _of(output, which, groups))
        grid.join(total, _of(lse, which, groups))

    each_part(work, list(_parts(k)), pays(q, k))
    return output, lse[..., 0]


def _attend_tile(
    tile: Tile, arrays: tuple[Tensor, Tensor, Tensor], output: Tensor, lse: Tensor, fold: int, scale: float
) -> None:
    query, key, value = arrays
    if fuses(query, value):
        inputs = tile.rows(query)[:, None], tile.keys(key)[:, None], tile.keys(value)[:, None]
        part, total = fused_forward(*inputs, _mask(tile, inputs[0][:, 0], inputs[1][:, 0], fold), scale)
        part, total = part[:, 0], total[:, 0, :, None]
        seen = total > hidden(total.dtype) / 2
    else:
        weights, highest = _weigh(tile, query, key, fold, scale)
        part, seen = weights @ tile.keys(value), highest > hidden(highest.dtype) / 2
        total = highest - weights.amax(-1, keepdim=True).log_()
    if not seen.all():
        part, total = part * seen, total.masked_fill(~seen, -torch.inf)
    tile.write(lse, total)
    tile.write(output, part)


def differentiate(
    arrays: tuple[Tensor, ...],
    grad_output: Tensor,
    grad_lse: Tensor | None,
    grid: Grid,
    tiles: Tiles,
    scale: float,
    bias_gradient: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Computes the gradients of q, k and v tile by tile.

    Args:
        arrays: q, k, v, and output and log-sum-exp of :func:`attend`.
        grad_output: gradient of the output.
        grad_lse: gradient of the log-sum-exp, or None.
        grid: how queries are cut, as in :func:`attend`.
        tiles: the tiles, as in :func:`attend`.
        scale: factor of the scores.
        bias_gradient: tiles also collect the gradient of their bias.
    """
    q, k, v, output, lse = arrays
    dtype, groups = lse.dtype, k.shape[2]
    empty, lse = (lse == -torch.inf)[..., None], lse[..., None]
    if empty.any():
        grad_output, lse = grad_output.masked_fill(empty, 0), lse.masked_fill(empty, 0)
    fused = fuses(q.to(dtype), v) and grad_lse is None and not bias_gradient
    rows = [grad_output, output, lse]
    if not fused:
        inner = (grad_output.to(dtype) * output).sum(-1, keepdim=True)
        rows = [grad_output, inner if grad_lse is None else (inner - grad_lse[..., None]).masked_fill(empty, 0)]
    grads = [torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v)]

    def work(first: int, last: int, which: Part) -> None:
        of_rows = [grid.split(_of(x, which, groups), dtype) for x in (q, *rows)]
        of_keys = [grid.split_keys(_of(x, which, groups), dtype) for x in (k, v)]
        found = [torch.zeros_like(x) for x in (of_rows[0], *of_keys)]
        for tile in tiles(first, last):
            (_fused_gradients if fused else _gradients)(tile, of_rows, of_keys, found, grid.fold, scale)
        for join, part, out in zip((grid.join, grid.join_keys, grid.join_keys), found, grads):
            join(part, _of(out, which, groups))

    each_part(work, list(_parts(k)), pays(q, k) and not bias_gradient)
    return grads[0], grads[1], grads[2]


def _fused_gradients(
    tile: Tile, of_rows: list[Tensor], of_keys: list[Tensor], found: list[Tensor], fold: int, scale: float
) -> None:
    query, *known = (tile.rows(x)[:, None] for x in of_rows)
    key, value = (tile.keys(x)[:, None] for x in of_keys)
    mask = _mask(tile, query[:, 0], key[:, 0], fold)
    grad_query, grad_key, grad_value = fused_backward(query, key, value, known[0], known[1], known[2], mask, scale)
    tile.write(found[0], grad_query[:, 0])
    tile.add(found[1], grad_key[:, 0])
    tile.add(found[2], grad_value[:, 0])


def _gradients(
    tile: Tile, of_rows: list[Tensor], of_keys: list[Tensor], found: list[Tensor], fold: int, scale: float
) -> None:
    (query, grad, inner), (key, value) = of_rows, of_keys
    weights, _ = _weigh(tile, query, key, fold, scale)
    tile.add(found[2], weights.mT @ tile.rows(grad))
    grad_scores = (tile.rows(grad) @ tile.keys(value).mT).sub_(tile.rows(inner)).mul_(weights)
    tile.write(found[0], (grad_scores @ tile.keys(key)).mul_(scale))
    tile.add(found[1], grad_scores.mT @ tile.rows(query).mul(scale))
    tile.bias_gradient(grad_scores.unflatten(1, (fold, -1)))
