"""Exact attention tile by tile in plain PyTorch (after FlashAttention-2, Dao 2023, arXiv:2307.08691).

A tile is a batch of blocks of queries with all the keys that each of them may read, so that one softmax finishes it.
The backward pass computes the weights again: memory is linear in T. Query heads that share a key head are folded into
the query rows, so that keys are never repeated. On CPUs in fp32, PyTorch's fused attention works on each tile.

Letters: G key heads, R query heads per key head, c queries of a block, n blocks of a tile, s keys of each.
Arrays inside: queries ``(B*G, blocks, R*c, D)``, keys ``(B*G, Tk, D)``, both padded, in fp32 or better.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.softmax.fused import fused_backward, fused_forward, fuses

HIDDEN = -1e30  # finite, so that a row without a key has weights that are numbers; they are multiplied by zero
ELEMENTS = 1 << 20  # scores of a tile: few enough for the cache, enough for few calls


class Tile(Protocol):
    """Blocks of queries with their keys."""

    def rows(self, x: Tensor) -> Tensor:
        """Queries, ``(n, R*c, X)``."""

    def write(self, x: Tensor, part: Tensor) -> None:
        """Inverse of :meth:`rows`."""

    def keys(self, x: Tensor) -> Tensor:
        """Keys, ``(n, s, X)``."""

    def add(self, x: Tensor, part: Tensor) -> None:
        """Adds gradients of the keys where :meth:`keys` took them."""

    def rule_(self, scores: Tensor) -> None:
        """Adds biases to the scores ``(n, R, c, s)`` and hides what may not be read."""

    def mask(self) -> Tensor | None:
        """What :meth:`rule_` adds to zeros ``(c, s)``, if it is the same for all blocks and heads of the tile."""

    def bias_gradient(self, grad_scores: Tensor) -> None:
        """Takes that of the biases from the gradient of the scores ``(n, R, c, s)``."""


@dataclass(frozen=True)
class Grid:
    """How queries are cut and keys padded: ``front`` counts what is put before the first token."""

    groups: int
    block: int
    blocks: int
    front: int
    key_front: int
    keys: int

    def split(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """``(B, Tq, H, X) -> (B*G, blocks, R*c, X)``."""
        batch, length, heads, width = x.shape
        padding = self.front, self.blocks * self.block - self.front - length
        x = F.pad(x.to(dtype), (0, 0, 0, 0, *padding)) if any(padding) else x.to(dtype)
        x = x.reshape(batch, self.blocks, self.block, self.groups, heads // self.groups, width)
        x = x.permute(0, 3, 1, 4, 2, 5).reshape(batch * self.groups, self.blocks, -1, width)
        return x.contiguous()

    def join(self, x: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Inverse of :meth:`split`."""
        batch, length, heads, _ = shape
        x = x.reshape(batch, self.groups, self.blocks, heads // self.groups, self.block, -1)
        x = x.permute(0, 2, 4, 1, 3, 5).reshape(batch, self.blocks * self.block, heads, -1)
        return x[:, self.front : self.front + length].to(dtype).contiguous()

    def split_keys(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """``(B, Tk, G, X) -> (B*G, keys, X)``."""
        batch, length, groups, width = x.shape
        x = x.to(dtype).transpose(1, 2)
        x = F.pad(x, (0, 0, self.key_front, self.keys - self.key_front - length))
        return x.reshape(batch * groups, self.keys, width).contiguous()

    def join_keys(self, x: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Inverse of :meth:`split_keys`."""
        batch, length, groups, width = shape
        x = x.view(batch, groups, self.keys, width)[:, :, self.key_front : self.key_front + length]
        return x.transpose(1, 2).to(dtype).contiguous()


Tiles = Callable[[int, int], Iterable[Tile]]  # those of a range of the B*G key heads


def _mask(tile: Tile, rows: Tensor, keys: Tensor, fold: int) -> Tensor:
    """What the rule adds to the scores, ``(n or 1, 1, R*c, s)``."""
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
    """Output ``(B, Tq, H, E)`` in the dtype of q and log-sum-exp ``(B, Tq, H)``; rows without a key give 0 and -inf."""
    dtype, fold = torch.promote_types(q.dtype, torch.float32), q.shape[2] // grid.groups
    query, key, value = grid.split(q, dtype), grid.split_keys(k, dtype), grid.split_keys(v, dtype)
    output = query.new_zeros(*query.shape[:3], v.shape[-1])
    lse = query.new_full((*query.shape[:3], 1), -torch.inf)
    fused = fuses(query, v)
    for tile in tiles(0, key.shape[0]):
        if fused:
            inputs = tile.rows(query)[:, None], tile.keys(key)[:, None], tile.keys(value)[:, None]
            part, total = fused_forward(*inputs, _mask(tile, inputs[0][:, 0], inputs[1][:, 0], fold), scale)
            part, total = part[:, 0], total[:, 0, :, None]
            seen = total > HIDDEN / 2
        else:
            weights, highest = _weigh(tile, query, key, fold, scale)
            part, seen = weights @ tile.keys(value), highest > HIDDEN / 2
            total = highest - weights.amax(-1, keepdim=True).log_()
        tile.write(lse, total.masked_fill(~seen, -torch.inf))
        tile.write(output, part.mul_(seen))
    shape = tuple(q.shape)
    return grid.join(output, shape, q.dtype), grid.join(lse, shape, dtype)[..., 0].contiguous()


def differentiate(
    arrays: tuple[Tensor, ...],
    grad_output: Tensor,
    grad_lse: Tensor | None,
    grid: Grid,
    tiles: Tiles,
    scale: float,
    bias_gradient: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v.

    Args:
        arrays: q, k, v, and output and log-sum-exp of :func:`attend`.
        bias_gradient: tiles take the gradient of their bias.
    """
    q, k, v, output, lse = arrays
    dtype, fold = lse.dtype, q.shape[2] // grid.groups
    empty = (lse == -torch.inf)[..., None]
    grad = grid.split(grad_output.masked_fill(empty, 0) if empty.any() else grad_output, dtype)
    query, key, value = grid.split(q, dtype), grid.split_keys(k, dtype), grid.split_keys(v, dtype)
    grad_q, grad_k, grad_v = (x.new_zeros(x.shape) for x in (query, key, value))
    if fuses(query, v) and grad_lse is None and not bias_gradient:
        known = grid.split(output, dtype), grid.split(lse[..., None].masked_fill(empty, 0), dtype)
        for tile in tiles(0, key.shape[0]):
            inputs = tile.rows(query)[:, None], tile.keys(key)[:, None], tile.keys(value)[:, None]
            mask = _mask(tile, inputs[0][:, 0], inputs[1][:, 0], fold)
            results = tile.rows(grad)[:, None], tile.rows(known[0])[:, None], tile.rows(known[1])[:, None]
            found = fused_backward(*inputs, *results, mask, scale)
            tile.write(grad_q, found[0][:, 0])
            tile.add(grad_k, found[1][:, 0])
            tile.add(grad_v, found[2][:, 0])
    else:
        inner = (grad_output.to(dtype) * output).sum(-1)
        inner = inner if grad_lse is None else inner - grad_lse
        inner = grid.split(inner[..., None].masked_fill(empty, 0), dtype)
        for tile in tiles(0, key.shape[0]):
            rows, of_rows = tile.rows(query).mul(scale), tile.rows(grad)
            weights, _ = _weigh(tile, query, key, fold, scale)
            tile.add(grad_v, weights.mT @ of_rows)
            grad_scores = (of_rows @ tile.keys(value).mT).sub_(tile.rows(inner)).mul_(weights)
            tile.write(grad_q, (grad_scores @ tile.keys(key)).mul_(scale))
            tile.add(grad_k, grad_scores.mT @ rows)
            tile.bias_gradient(grad_scores.unflatten(1, (fold, -1)))
    grad_q = grid.join(grad_q, tuple(q.shape), q.dtype)
    return grad_q, grid.join_keys(grad_k, tuple(k.shape), k.dtype), grid.join_keys(grad_v, tuple(v.shape), v.dtype)
