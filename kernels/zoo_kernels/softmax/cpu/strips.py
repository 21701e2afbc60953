"""Attention over a band of keys in PyTorch's fused CPU attention, without a copy of queries or keys.

Consecutive strips of queries read overlapping ranges of keys: strips and heads are views of the arrays. Keys that all
later queries read (sink tokens, global blocks) are columns of their own, and keys that differ by head are gathered;
parts are merged by their log-sum-exp. The backward pass of a part takes the log-sum-exp of the whole, so that parts are
independent.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from zoo_kernels.softmax.cpu import sparse, tiles
from zoo_kernels.softmax.cpu.fused import fused_backward, fused_forward
from zoo_kernels.softmax.cpu.strip_plan import Piece, StripPlan


def _units(q: Tensor, k: Tensor) -> list[tuple[int, int, int]]:
    """Batch rows and ranges of key heads: one range for each thread."""
    groups = k.shape[2]
    parts = min(torch.get_num_threads(), groups) if tiles.pays(q, k) else 1
    ranges = [(groups * i // parts, groups * (i + 1) // parts) for i in range(parts)]
    return [(row, first, last) for row in range(q.shape[0]) for first, last in ranges]


def _heads(x: Tensor, groups: int, first: int, last: int, number: int) -> Tensor:
    """Of the query heads ``(T, H, X)`` the one of that number of each key head in a range."""
    return x.unflatten(1, (groups, -1))[:, first:last, number]


def _pieces(plan: StripPlan, head: int | None = None) -> Iterator[tuple[Piece, bool]]:
    """Pieces of one query head, or those of all heads, and whether they are the first of their rows."""
    if head is None:
        yield from plan.pieces
    else:
        yield from ((piece, False) for piece in plan.gathered[head % len(plan.gathered)])


def _attend(arrays: list[Tensor], pieces: Iterator[tuple[Piece, bool]], scale: float) -> None:
    """Puts or merges the pieces into output and log-sum-exp; arrays of some heads ``(T, H, X)``."""
    query, key, value, output, lse = arrays
    for piece, fresh in pieces:
        mask = None if piece.mask is None else piece.mask[None, None]
        part, sums = fused_forward(piece.rows(query), piece.columns(key), piece.columns(value), mask, scale)
        held, held_sums = piece.rows(output), piece.rows(lse)[..., 0]
        if fresh:
            held.copy_(part)
            held_sums.copy_(sums)
        else:
            held.lerp_(part, torch.sigmoid(sums - held_sums)[..., None])
            held_sums.copy_(torch.logaddexp(held_sums, sums))


def _differentiate(
    arrays: list[Tensor], grads: list[Tensor], pieces: Iterator[tuple[Piece, bool]], scale: float
) -> None:
    """Puts or adds gradients of query, key and value; arrays of some heads ``(T, H, X)``."""
    query, key, value, *of_rows = arrays
    for piece, fresh in pieces:
        mask = None if piece.mask is None else piece.mask[None, None]
        inputs = piece.rows(query), piece.columns(key), piece.columns(value)
        grad, output, lse = (piece.rows(x) for x in of_rows)
        found = fused_backward(*inputs, grad, output, lse, mask, scale)
        place = piece.rows(grads[0])
        if fresh:
            place.copy_(found[0])
        else:
            place += found[0]
        piece.add(grads[1], found[1])
        piece.add(grads[2], found[2])


def forward(q: Tensor, k: Tensor, v: Tensor, plan: StripPlan, scale: float) -> tuple[Tensor, Tensor]:
    """Computes output ``(B, T, H, E)`` and log-sum-exp ``(B, T, H)`` by a plan of strips."""
    output = torch.empty(*q.shape[:3], v.shape[-1], dtype=q.dtype)
    lse = torch.empty(q.shape[:3], dtype=q.dtype)
    groups, fold = k.shape[2], q.shape[2] // k.shape[2]

    def work(row: int, first: int, last: int) -> None:
        of_keys = [x[row][:, first:last] for x in (k, v)]
        for number in range(fold):
            query, *sums = (_heads(x[row], groups, first, last, number) for x in (q, output, lse[..., None]))
            _attend([query, *of_keys, *sums], _pieces(plan), scale)
            for i in range(last - first if plan.gathered else 0):
                some = [x[:, i : i + 1] for x in (query, *of_keys, *sums)]
                _attend(some, _pieces(plan, (first + i) * fold + number), scale)

    tiles.each_part(work, _units(q, k), tiles.pays(q, k))
    if plan.rest is not None:
        part, sums = tiles.attend(q, k, v, *sparse.plan(q, k, plan.rest, None, None), scale)
        output.lerp_(part, torch.sigmoid(sums - lse)[..., None])
        lse = torch.logaddexp(lse, sums)
    return output, lse


def backward(
    arrays: tuple[Tensor, ...], grad_output: Tensor, plan: StripPlan, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Computes the gradients of q, k and v; ``arrays`` are q, k, v, output and log-sum-exp of :func:`forward`."""
    q, k, v, output, lse = arrays
    grad_output = grad_output.contiguous()
    grads = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
    groups, fold = k.shape[2], q.shape[2] // k.shape[2]

    def work(row: int, first: int, last: int) -> None:
        keys = [x[row][:, first:last] for x in (k, v)]
        of_keys = [x[row][:, first:last] for x in grads[1:]]
        for number in range(fold):
            of_rows = (q, grad_output, output, lse[..., None], grads[0])
            query, *known, of_query = (_heads(x[row], groups, first, last, number) for x in of_rows)
            _differentiate([query, *keys, *known], [of_query, *of_keys], _pieces(plan), scale)
            for i in range(last - first if plan.gathered else 0):
                some = [x[:, i : i + 1] for x in (query, *keys, *known)]
                added = [torch.zeros(x.shape[0], 1, x.shape[2], dtype=x.dtype) for x in of_keys]
                pieces = _pieces(plan, (first + i) * fold + number)
                _differentiate(some, [of_query[:, i : i + 1], *added], pieces, scale)
                for grad, more in zip(of_keys, added):
                    grad[:, i : i + 1] += more

    tiles.each_part(work, _units(q, k), tiles.pays(q, k))
    if plan.rest is not None:
        rest = tiles.differentiate(arrays, grad_output, None, *sparse.plan(q, k, plan.rest, None, None), scale)
        for grad, more in zip(grads, rest):
            grad += more
    return grads
