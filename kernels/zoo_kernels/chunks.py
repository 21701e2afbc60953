"""Sequences cut into chunks and segments, for the PyTorch forms of the families that carry a state.

Inside a chunk of C tokens all pairs are taken directly; between chunks a running state is carried. Chunks are worked
through in segments small enough for the cache, and a backward pass starts from one state per segment.

Letters: n chunks of c tokens in a segment.
"""

from __future__ import annotations

from collections.abc import Hashable
from threading import local
from typing import NamedTuple

import torch
from torch import Tensor

CACHE_ELEMENTS = 2**17  # of one array of a segment: all of them then share a few MiB of cache
FORGOTTEN = -1000.0  # a log decay whose exponential is 0 in all precisions, where infinities have no difference
_KEPT = local()  # each thread's arrays of the last call, because fresh memory costs as much as the arithmetic on it

Buffers = dict[tuple[str, int, int, int], "Buffer"]


class Chunking(NamedTuple):
    """Cut of a sequence: tokens per chunk, chunks per segment, and whether a scan combines the states of chunks."""

    chunk: int
    segment: int
    scan: bool

    def spans(self, length: int) -> list[tuple[int, int, int]]:
        """Segments of a sequence as (start, stop, tokens per chunk): whole chunks first, then the remaining tokens."""
        whole, step = length - length % self.chunk, self.segment * self.chunk
        spans = [(start, min(start + step, whole), self.chunk) for start in range(0, whole, step)]
        return spans if whole == length else [*spans, (whole, length, length - whole)]

    def segments(self, length: int) -> int:
        """Number of segments of a sequence of ``length`` tokens."""
        whole = length // self.chunk
        return (whole + self.segment - 1) // self.segment + (length - whole * self.chunk + self.chunk - 1) // self.chunk


def plan(batch: int, length: int, heads: int, width: int, algorithm: str = "auto", chunk: int = 64) -> Chunking:
    """Chooses the cut: ``parallel`` is one chunk, ``scan`` one segment of chunks, ``chunk`` segments in sequence."""
    if algorithm == "parallel":
        return Chunking(max(length, 1), 1, False)
    chunks = -(-length // chunk)
    if algorithm == "scan":
        return Chunking(chunk, max(chunks, 1), True)
    fitting = CACHE_ELEMENTS // max(batch * heads * chunk * width, 1)
    return Chunking(chunk, max(1, min(chunks, fitting)), False)


def precise(x: Tensor) -> Tensor:
    """Converts to fp64 where the device supports it, since in fp32 sums of strong decays lose the weak ones."""
    return x.float() if x.device.type == "mps" else x.double()


class Weights(NamedTuple):
    """Factors of a segment from decays and document boundaries, each broadcastable over ``(n, B, H, ...)``."""

    pair: Tensor  # (.., c, c) weight of key j for query i inside the chunk; 0 above the diagonal
    query: Tensor  # (.., c, 1) weight of the state before the chunk for query i
    key: Tensor  # (.., c, 1) weight of key j in the state after the chunk
    state: Tensor  # (.., 1, 1) weight of the state before the chunk in the state after it


def decay_weights(log_decay: Tensor, dtype: torch.dtype, scale: float = 1.0) -> Weights:
    """Factors from the log decay of each token, ``(.., c, 1)`` in fp64 so that sums of strong decays stay exact."""
    total = log_decay.cumsum(-2)
    last = total[..., -1:, :]
    return Weights(
        (total - total.mT).to(dtype).exp_().tril_().mul_(scale),
        total.to(dtype).exp().mul_(scale),
        (last - total).to(dtype).exp(),
        last.to(dtype).exp(),
    )


def within_documents(decay: Weights, ids: Tensor, before: Tensor) -> Weights:
    """Zeroes what crosses a document boundary, by comparing ids inside the chunk and with the token before it."""
    before, last = before[..., :1, :], ids[..., -1:, :]
    return Weights(
        decay.pair * (ids == ids.mT),
        decay.query * (ids == before),
        decay.key * (ids == last),
        decay.state * (last == before),
    )


def decay_gradient(pairs: Tensor, queries: Tensor, keys: Tensor, state: Tensor) -> Tensor:
    """Gradient of the log decay of each token ``(.., c)``: the decay at t scales what passes over t.

    The same numbers are added where they enter and taken away where they leave, in fp64, so that what does not pass
    over t cancels without a trace, however much larger it is. The usual q . dq - k . dk leaves its rounding errors.

    Args:
        pairs: ``(.., c, c)`` query i times its gradient through key j.
        queries: ``(.., c)`` the same through the state before the chunk.
        keys: ``(.., c)`` the same through the state after the chunk.
        state: ``(..,)`` the same through both states.
    """
    pairs, keys = precise(pairs.tril(-1)), precise(keys)
    change = pairs.sum(-1) - pairs.sum(-2) + queries - keys
    change[..., -1] += keys.sum(-1) + state
    return change.flip(-1).cumsum(-1).flip(-1)


class Buffer(NamedTuple):
    """Memory of one array of a segment in three views: ``(n, B, H, c, X)`` for weights, else ``(n B H, ..)``."""

    wide: Tensor
    flat: Tensor
    turned: Tensor

    def multiply(self, a: Tensor, b: Tensor, add: bool = False) -> None:
        """Writes ``a @ b`` into the buffer, or adds it if ``add``."""
        self.flat.baddbmm_(a, b, beta=float(add))


def kept_buffers(family: str, call: Hashable) -> Buffers:
    """Buffers of the thread's last call of ``family`` if that was alike, else none; never of more than a segment."""
    last = _KEPT.__dict__.get(family)
    if last is None or last[0] != call:
        last = _KEPT.__dict__[family] = call, {}
    return last[1]


class Segments:
    """The segments of one call: views of arrays, and buffers, which all segments share.

    Args:
        family: whose call it is, so that the buffers of one do not take the place of another's.
        like: array of the type and on the device of the call.
        rows: batch and heads of the buffers.
        width: numbers of the widest head.
    """

    def __init__(self, family: str, like: Tensor, rows: tuple[int, int], width: int, cut: Chunking) -> None:
        self.cut, self.device, self.rows = cut, like.device, rows
        self.dtype = torch.promote_types(like.dtype, torch.float32)
        self.chunks = [chunk for _, _, chunk in cut.spans(like.shape[1])]
        small = rows[0] * rows[1] * cut.segment * cut.chunk * width <= CACHE_ELEMENTS and like.device.type == "cpu"
        self.buffers = kept_buffers(family, (like.shape, rows, self.dtype, cut)) if small else {}

    def views(self, array: Tensor) -> list[Tensor]:
        """The segments of ``(B, T, H, X)`` as ``(n, B, H, c, X)``."""
        length, chunk = array.shape[1], self.cut.chunk
        whole = length - length % chunk
        parts: list[Tensor] = []
        if whole:
            chunks = array[:, :whole].unflatten(1, (-1, chunk)).permute(1, 0, 3, 2, 4)
            parts.extend(chunks.split(self.cut.segment))
        if whole < length:
            parts.append(array[:, None, whole:].permute(1, 0, 3, 2, 4))
        return parts

    def document_views(self, documents: Tensor) -> list[list[Tensor]]:
        """The segments of the ids of all tokens and of those before them."""
        before = torch.cat([documents[:, :1], documents[:, :-1]], dim=1)
        return [self.views(ids[:, :, None, None]) for ids in (documents, before)]

    def buffer(self, name: str, count: int, rows: int, columns: int) -> Buffer:
        """An array of a segment with whatever the last segment left there."""
        key = name, count, rows, columns
        if key not in self.buffers:
            with torch.inference_mode(False):  # for calls of every mode
                wide = torch.empty(count, *self.rows, rows, columns, dtype=self.dtype, device=self.device)
            flat = wide.flatten(0, 2)
            self.buffers[key] = Buffer(wide, flat, flat.mT)
        return self.buffers[key]

    def load(self, name: str, view: Tensor, weight: Tensor | None = None) -> Buffer:
        """A copy of a segment in the computing precision, multiplied by ``weight``."""
        copy = self.buffer(name, view.shape[0], view.shape[3], view.shape[4])
        if weight is None:
            copy.wide.copy_(view)
        else:
            torch.mul(view, weight, out=copy.wide)
        return copy

    def product(self, name: str, a: Tensor, b: Tensor) -> Buffer:
        """``a @ b`` of flat arrays."""
        out = self.buffer(name, a.shape[0] // (self.rows[0] * self.rows[1]), a.shape[1], b.shape[2])
        out.multiply(a, b)
        return out
