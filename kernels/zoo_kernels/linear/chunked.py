"""Linear attention in chunks (Lightning Attention-2, Qin et al. 2024, arXiv:2401.04658) in plain PyTorch.

Inside a chunk of C tokens the masked left product is taken directly; between chunks a running state is carried. All
exponents are differences that are <= 0, so no decay can overflow. Chunks are worked through in segments small enough
for the cache, and the backward pass recomputes what it needs from the inputs and one state per segment.

Letters: n chunks of c tokens in a segment; D key width; E value width.
"""

from __future__ import annotations

from threading import local
from typing import NamedTuple

import torch
from torch import Tensor

CACHE_ELEMENTS = 2**17  # of one array of a segment: all of them then share a few MiB of cache
_KEPT = local()  # each thread's arrays of the last call, because fresh memory costs as much as the arithmetic on it


class Plan(NamedTuple):
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


def plan(batch: int, length: int, heads: int, width: int, algorithm: str, chunk: int = 64) -> Plan:
    """Chooses the cut: ``parallel`` is one chunk, ``scan`` one segment of chunks, ``chunk`` segments in sequence."""
    if algorithm == "parallel":
        return Plan(max(length, 1), 1, False)
    chunks = -(-length // chunk)
    if algorithm == "scan":
        return Plan(chunk, max(chunks, 1), True)
    fitting = CACHE_ELEMENTS // max(batch * heads * chunk * width, 1)
    return Plan(chunk, max(1, min(chunks, fitting)), False)


def precise(x: Tensor) -> Tensor:
    """Converts to fp64 where the device supports it, since in fp32 sums of strong decays lose the weak ones."""
    return x.float() if x.device.type == "mps" else x.double()


class Weights(NamedTuple):
    """Factors of a segment from decays and document boundaries, each broadcastable over ``(n, B, H, ...)``."""

    pair: Tensor  # (.., c, c) weight of key j for query i inside the chunk; 0 above the diagonal
    query: Tensor  # (.., c, 1) weight of the state before the chunk for query i
    key: Tensor  # (.., c, 1) weight of key j in the state after the chunk
    state: Tensor  # (.., 1, 1) weight of the state before the chunk in the state after it


def _decay_weights(log_decay: Tensor, dtype: torch.dtype, scale: float) -> Weights:
    """Factors from the log decay of each token, ``(.., c, 1)`` in fp64 so that sums of strong decays stay exact."""
    total = log_decay.cumsum(-2)
    last = total[..., -1:, :]
    return Weights(
        (total - total.mT).to(dtype).exp_().tril_().mul_(scale),
        total.to(dtype).exp().mul_(scale),
        (last - total).to(dtype).exp(),
        last.to(dtype).exp(),
    )


class Buffer(NamedTuple):
    """Memory of one array of a segment in three views: ``(n, B, H, c, X)`` for weights, else ``(n B H, ..)``."""

    wide: Tensor
    flat: Tensor
    turned: Tensor

    def multiply(self, a: Tensor, b: Tensor, add: bool = False) -> None:
        """Writes ``a @ b`` into the buffer, or adds it if ``add``."""
        self.flat.baddbmm_(a, b, beta=float(add))


def _kept_buffers(call: tuple[object, ...]) -> dict[tuple[str, int, int, int], Buffer]:
    """The buffers of the thread's last call if that had the same shapes, else none; never of more than a segment."""
    if getattr(_KEPT, "call", None) != call:
        _KEPT.call, _KEPT.buffers = call, {}
    return _KEPT.buffers


class _Segments:
    """The segments of one call: views of arrays, weights, and buffers, which all segments share."""

    def __init__(self, q: Tensor, log_decay: Tensor | None, documents: Tensor | None, scale: float, cut: Plan) -> None:
        batch, length, heads, _ = q.shape
        self.cut, self.scale, self.device, self.rows = cut, scale, q.device, (batch, heads)
        self.dtype = torch.promote_types(q.dtype, torch.float32)
        small = self.device.type == "cpu" and batch * heads * cut.segment * cut.chunk * q.shape[-1] <= CACHE_ELEMENTS
        self.buffers = _kept_buffers((q.shape, self.dtype, cut)) if small else {}
        self.constant: dict[int, Weights] = {}
        self.chunks = [chunk for _, _, chunk in cut.spans(length)]
        self.log_decay = precise(torch.zeros(1, device=q.device) if log_decay is None else log_decay)
        self.of_tokens = self.views(self.log_decay[..., None]) if self.log_decay.dim() == 3 else None
        self.documents = None
        if documents is not None:
            before = torch.cat([documents[:, :1], documents[:, :-1]], dim=1)
            self.documents = [self.views(ids[:, :, None, None]) for ids in (documents, before)]

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

    def weights(self, i: int) -> Weights:
        """Factors of segment ``i``; those of one decay per head are the same for all chunks of a size."""
        chunk = self.chunks[i]
        if self.of_tokens is not None:
            decay = _decay_weights(self.of_tokens[i], self.dtype, self.scale)
        elif chunk in self.constant:
            decay = self.constant[chunk]
        else:
            every_token = self.log_decay[:, None, None].expand(1, 1, -1, chunk, 1)
            decay = self.constant[chunk] = _decay_weights(every_token, self.dtype, self.scale)
        return decay if self.documents is None else _within_documents(decay, *(ids[i] for ids in self.documents))


def _within_documents(decay: Weights, ids: Tensor, before: Tensor) -> Weights:
    """Zeroes what crosses a document boundary, by comparing ids inside the chunk and with the token before it."""
    before, last = before[..., :1, :], ids[..., -1:, :]
    return Weights(
        decay.pair * (ids == ids.mT),
        decay.query * (ids == before),
        decay.key * (ids == last),
        decay.state * (last == before),
    )


def _fill_states(states: Tensor, factor: Tensor, update: Tensor, scan: bool, backwards: bool = False) -> None:
    """Fills ``states`` ``(n + 1, ..)`` from its first, ``S[i + 1] = factor[i] * S[i] + update[i]``, or its last."""
    factor = factor.expand(update.shape[0], *factor.shape[1:])
    known, wanted = states[:-1], states[1:]
    if backwards:
        known, wanted = wanted, known
    if scan and backwards:
        wanted.copy_(prefix_scan(known[-1], factor.flip(0), update.flip(0)).flip(0))
    elif scan:
        wanted.copy_(prefix_scan(known[0], factor, update))
    else:
        steps = list(zip(update, factor, known, wanted))
        for u, f, s, out in reversed(steps) if backwards else steps:
            torch.addcmul(u, f, s, out=out)


def prefix_scan(state: Tensor, reach: Tensor, after: Tensor) -> Tensor:
    """Computes the states after each of ``n`` chunks from their factors and updates ``(n, ..)``, in log2(n) steps."""
    offset = 1
    while offset < after.shape[0]:
        later = torch.addcmul(after[offset:], reach[offset:], after[:-offset])
        after = torch.cat([after[:offset], later])
        reach = torch.cat([reach[:offset], reach[offset:] * reach[:-offset]])
        offset *= 2
    return torch.addcmul(after, reach, state)


def chunked_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    state: Tensor,
    documents: Tensor | None,
    scale: float,
    cut: Plan,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """Computes output ``(B, T, H, E)``, final state, and states before the segments ``(n, B, H, D, E)``."""
    segments = _Segments(q, log_decay, documents, scale, cut)
    output = torch.empty(*q.shape[:3], v.shape[-1], dtype=dtype, device=q.device)
    starts = torch.empty(len(segments.chunks), *state.shape, dtype=state.dtype, device=state.device)
    rows = state.shape[0] * state.shape[1]
    for i, (*inputs, wanted) in enumerate(zip(*map(segments.views, (q, k, v, output)))):
        w = segments.weights(i)
        qs, ks, vs = map(segments.load, "qkv", inputs)
        scores = segments.product("scores", qs.flat, ks.turned)
        scores.wide.mul_(w.pair)
        ks.wide.mul_(w.key)
        update = segments.product("update", ks.turned, vs.flat)
        states = segments.buffer("states", wanted.shape[0] + 1, *state.shape[2:])
        states.wide[0] = starts[i] = state
        _fill_states(states.wide, w.state, update.wide, cut.scan)
        state = states.wide[-1]
        out = segments.product("out", qs.flat, states.flat[:-rows])
        out.wide.mul_(w.query)
        out.multiply(scores.flat, vs.flat, add=True)
        wanted.copy_(out.wide)
    return output, state.clone(), starts


def _decay_gradient(pairs: Tensor, queries: Tensor, keys: Tensor, state: Tensor) -> Tensor:
    """Gradient of the log decay of each token ``(.., c)``: the decay at t scales what passes over t.

    The same numbers are added where they enter and subtracted where they leave, in fp64, so that what does not pass
    over t cancels exactly, however much larger it is. The usual q . dq - k . dk leaves its rounding errors.

    Args:
        pairs: ``(.., c, c)`` query i times its gradient through key j.
        queries: ``(.., c)`` query times its gradient through the state before the chunk.
        keys: ``(.., c)`` key times its gradient through the state after the chunk.
        state: ``(..,)`` state before the chunk times its gradient through the state after it.
    """
    pairs, keys = precise(pairs.tril(-1)), precise(keys)
    change = pairs.sum(-1) - pairs.sum(-2) + queries - keys
    change[..., -1] += keys.sum(-1) + state
    return change.flip(-1).cumsum(-1).flip(-1)


def chunked_backward(
    inputs: tuple[Tensor, Tensor, Tensor],
    log_decay: Tensor | None,
    documents: Tensor | None,
    starts: Tensor,
    scale: float,
    cut: Plan,
    grad_output: Tensor,
    grad_state: Tensor,
    grad_decay: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Computes gradients of q, k, v and the initial state; fills ``grad_decay`` ``(B, T, H)`` fp64 if it is given."""
    segments = _Segments(inputs[0], log_decay, documents, scale, cut)
    load, product, rows = segments.load, segments.product, grad_state.shape[0] * grad_state.shape[1]
    grad_q, grad_k, grad_v = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in inputs)
    views = [segments.views(x) for x in (*inputs, grad_output, grad_q, grad_k, grad_v)]
    decay_views = [] if grad_decay is None else segments.views(grad_decay[..., None])
    for i in reversed(range(len(segments.chunks))):
        w = segments.weights(i)
        *sources, to_q, to_k, to_v = (x[i] for x in views)
        q, k, v, g = map(load, "qkvg", sources)
        kw, gw = load("kw", k.wide, w.key), load("gw", g.wide, w.query)
        before, after = (segments.buffer(n, len(to_q) + 1, *grad_state.shape[2:]) for n in ("before", "after"))
        before.wide[0], after.wide[-1] = starts[i], grad_state
        _fill_states(before.wide, w.state, product("update", kw.turned, v.flat).wide, cut.scan)
        _fill_states(after.wide, w.state, product("update", q.turned, gw.flat).wide, cut.scan, backwards=True)
        grad_state = after.wide[0]
        pair, scores = product("pair", g.flat, v.turned), product("scores", q.flat, k.turned)
        pair.wide.mul_(w.pair)
        dq = product("dq", gw.flat, before.turned[:-rows])
        dv = product("gw", kw.flat, after.flat[rows:])  # what was there has been read for the last time, as below
        dk = product("kw", v.flat, after.turned[rows:])
        dk.wide.mul_(w.key)
        if decay_views:
            kept = precise(before.wide[:-1] * after.wide[1:]).sum((-2, -1)) * w.state[..., 0, 0]
            through = (q.wide * dq.wide).sum(-1), (k.wide * dk.wide).sum(-1), kept
            decay_views[i][..., 0] = _decay_gradient(scores.wide * pair.wide, *through)
        dq.multiply(pair.flat, k.flat, add=True)
        dk.multiply(pair.turned, q.flat, add=True)
        scores.wide.mul_(w.pair)
        dv.multiply(scores.turned, g.flat, add=True)
        for wanted, part in (to_q, dq), (to_k, dk), (to_v, dv):
            wanted.copy_(part.wide)
    return grad_q, grad_k, grad_v, grad_state.clone()
