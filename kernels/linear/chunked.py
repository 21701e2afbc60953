"""Linear attention in chunks (Lightning Attention-2, Qin et al. 2024, arXiv:2401.04658) in plain PyTorch.

Inside a chunk of C tokens the masked left product is taken directly; between chunks a running state is carried. All
exponents are differences that are <= 0, so no decay can overflow. Chunks are worked through in segments small enough
for the cache, and the backward pass recomputes what it needs from the inputs and one state per segment.

Letters: N = B*H rows; n chunks of c tokens in a segment; D key width; E value width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

CACHE_ELEMENTS = 2**17  # of one array of a segment: q, k, v and the products then share a second-level cache


class Plan(NamedTuple):
    """How a sequence is cut: tokens per chunk, chunks per segment, and whether chunk states are combined by a scan."""

    chunk: int
    segment: int
    scan: bool

    def spans(self, length: int) -> list[tuple[int, int, int]]:
        """Segments as (start, stop, tokens per chunk): whole chunks, then what is left of the sequence."""
        whole, step = length - length % self.chunk, self.segment * self.chunk
        spans = [(start, min(start + step, whole), self.chunk) for start in range(0, whole, step)]
        return spans if whole == length else [*spans, (whole, length, length - whole)]

    def segments(self, length: int) -> int:
        """How many segments a sequence of ``length`` tokens has."""
        whole = length // self.chunk
        return (whole + self.segment - 1) // self.segment + (length - whole * self.chunk + self.chunk - 1) // self.chunk


def plan(batch: int, length: int, heads: int, width: int, algorithm: str, chunk: int = 64) -> Plan:
    """Cut for ``algorithm``: ``parallel`` is one chunk, ``scan`` one segment, ``chunk`` sequential segments."""
    if algorithm == "parallel":
        return Plan(max(length, 1), 1, False)
    chunks = -(-length // chunk)
    if algorithm == "scan":
        return Plan(chunk, max(chunks, 1), True)
    fitting = CACHE_ELEMENTS // max(batch * heads * chunk * width, 1)
    return Plan(chunk, max(1, min(chunks, fitting)), False)


def precise(x: Tensor) -> Tensor:
    """fp64, where the device has it: sums of strong decays would lose the weak ones in fp32."""
    return x.float() if x.device.type == "mps" else x.double()


class Weights(NamedTuple):
    """Decay and document factors of a segment, each broadcastable over ``(B, H, n, ...)``."""

    pair: Tensor  # (.., c, c) weight of key j for query i inside the chunk; 0 above the diagonal
    query: Tensor  # (.., c, 1) weight of the state before the chunk for query i
    key: Tensor  # (.., c, 1) weight of key j in the state after the chunk
    state: Tensor  # (.., 1, 1) weight of the state before the chunk in the state after it


def _decay_weights(log_decay: Tensor, dtype: torch.dtype) -> Weights:
    """Factors from the log decay of each token, ``(.., c)`` in fp64 so that sums of strong decays stay exact."""
    total = log_decay.cumsum(-1)
    size = total.shape[-1]
    future = torch.ones(size, size, dtype=torch.bool, device=total.device).triu(1)
    pair = (total[..., :, None] - total[..., None, :]).masked_fill_(future, -torch.inf)
    last = total[..., -1:]
    return Weights(
        pair.to(dtype).exp(),
        total.to(dtype).exp()[..., None],
        (last - total).to(dtype).exp()[..., None],
        last.to(dtype).exp()[..., None],
    )


class _Segments:
    """The segments of one call: slices, their weights, and views of arrays cut into chunks."""

    def __init__(self, q: Tensor, log_decay: Tensor | None, documents: Tensor | None, scale: float, cut: Plan) -> None:
        self.scale = scale
        self.batch, self.length, self.heads = q.shape[:3]
        self.dtype = torch.promote_types(q.dtype, torch.float32)
        self.log_decay = None if log_decay is None else precise(log_decay)
        self.documents = documents
        self.chunk = cut.chunk
        self.constant: dict[int, Weights] = {}
        self.spans = cut.spans(self.length)

    def cut(self, array: Tensor, span: tuple[int, int, int]) -> Tensor:
        """``(B, T, H, X) -> (B, H, n, c, X)``, contiguous, in the computing precision."""
        start, stop, chunk = span
        part = array[:, start:stop].to(self.dtype).transpose(1, 2)
        return part.reshape(self.batch, self.heads, (stop - start) // chunk, chunk, array.shape[-1])

    def weights(self, span: tuple[int, int, int], device: torch.device) -> Weights:
        start, stop, chunk = span
        if self.log_decay is not None and self.log_decay.dim() == 3:
            part = self.log_decay[:, start:stop].transpose(1, 2)
            decay = _decay_weights(part.reshape(self.batch, self.heads, -1, chunk), self.dtype)
        else:
            decay = self._constant_weights(chunk, device)
        if self.scale != 1.0:
            decay = decay._replace(pair=decay.pair * self.scale, query=decay.query * self.scale)
        return decay if self.documents is None else self._within_documents(decay, span)

    def _constant_weights(self, chunk: int, device: torch.device) -> Weights:
        if chunk not in self.constant:
            log_decay = self.log_decay
            if log_decay is None:
                log_decay = precise(torch.zeros(1, device=device))
            self.constant[chunk] = _decay_weights(log_decay[None, :, None, None].expand(-1, -1, 1, chunk), self.dtype)
        return self.constant[chunk]

    def _within_documents(self, decay: Weights, span: tuple[int, int, int]) -> Weights:
        """Zeroes what crosses a document boundary, by comparing ids inside the chunk and with the token before it."""
        assert self.documents is not None
        start, stop, chunk = span
        ids = self.documents[:, start:stop].reshape(self.batch, 1, -1, chunk)
        before = self.documents[:, max(start - 1, 0) : stop - 1 : chunk] if start else self._before_first(span)
        before = before.reshape(self.batch, 1, -1, 1)
        last = ids[..., -1:]
        return Weights(
            decay.pair * (ids[..., :, None] == ids[..., None, :]),
            decay.query * (ids == before)[..., None],
            decay.key * (ids == last)[..., None],
            decay.state * (last == before)[..., None],
        )

    def _before_first(self, span: tuple[int, int, int]) -> Tensor:
        assert self.documents is not None
        _, stop, chunk = span
        return torch.cat([self.documents[:, :1], self.documents[:, chunk - 1 : stop - 1 : chunk]], dim=1)


def _carry(state: Tensor, factor: Tensor, update: Tensor, scan: bool) -> tuple[Tensor, Tensor]:
    """States before each chunk ``(B, H, n, D, E)`` and after the last, for ``S <- factor * S + update`` over dim 2."""
    chunks = update.shape[2]
    if chunks == 1:
        return state[:, :, None], torch.addcmul(update[:, :, 0], factor[:, :, 0], state)
    factor = factor.expand(*factor.shape[:2], chunks, 1, 1)
    if scan:
        after, reach = update, factor
        offset = 1
        while offset < chunks:
            after = torch.cat(
                [
                    after[:, :, :offset],
                    torch.addcmul(after[:, :, offset:], reach[:, :, offset:], after[:, :, :-offset]),
                ],
                2,
            )
            reach = torch.cat([reach[:, :, :offset], reach[:, :, offset:] * reach[:, :, :-offset]], 2)
            offset *= 2
        after = torch.addcmul(after, reach, state[:, :, None])
        return torch.cat([state[:, :, None], after[:, :, :-1]], 2), after[:, :, -1]
    before = torch.empty_like(update)
    for i in range(chunks):
        before[:, :, i] = state
        state = torch.addcmul(update[:, :, i], factor[:, :, i], state)
    return before, state


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
    """Output ``(B, T, H, E)`` in ``dtype``, final state, and the states before the segments ``(n, B, H, D, E)``."""
    segments = _Segments(q, log_decay, documents, scale, cut)
    output = torch.empty(*q.shape[:3], v.shape[-1], dtype=dtype, device=q.device)
    starts = torch.empty(len(segments.spans), *state.shape, dtype=state.dtype, device=state.device)
    for start, span in zip(starts, segments.spans):
        start.copy_(state)
        qs, ks, vs = segments.cut(q, span), segments.cut(k, span), segments.cut(v, span)
        w = segments.weights(span, q.device)
        before, state = _carry(state, w.state, (ks * w.key).mT @ vs, cut.scan)
        out = (qs @ ks.mT).mul_(w.pair) @ vs
        out += (qs * w.query) @ before
        output[:, span[0] : span[1]] = out.flatten(2, 3).transpose(1, 2)
    return output, state, starts


def _decay_gradient(pairs: Tensor, queries: Tensor, keys: Tensor, state: Tensor) -> Tensor:
    """Gradient of the log decay of each token ``(.., c)``: the decay at t scales what passes over t.

    The same numbers are added where they enter and taken away where they leave, in fp64, so that what does not pass
    over t cancels without a trace, however much larger it is. The usual q . dq - k . dk leaves its rounding errors.

    Args:
        pairs: ``(.., c, c)`` query i times its gradient through key j. queries, keys: ``(.., c)`` the same through the
            state before and after the chunk. state: ``(..,)`` through both.
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
    """Gradients of q, k, v and the first state; ``grad_decay`` ``(B, T, H)`` fp64 is filled if it is given."""
    q, k, v = inputs
    segments = _Segments(q, log_decay, documents, scale, cut)
    grad_q, grad_k, grad_v = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in inputs)
    for span, state in zip(reversed(segments.spans), reversed(starts.unbind(0))):
        qs, ks, vs, gs = (segments.cut(x, span) for x in (q, k, v, grad_output))
        w = segments.weights(span, q.device)
        weighted = ks * w.key
        before, _ = _carry(state, w.state, weighted.mT @ vs, cut.scan)
        toward = (qs * w.query).mT @ gs
        flipped = w.state.expand(*w.state.shape[:2], toward.shape[2], 1, 1).flip(2)
        after, grad_state = _carry(grad_state, flipped, toward.flip(2), cut.scan)
        after = after.flip(2)
        pair = (gs @ vs.mT).mul_(w.pair)
        scores = qs @ ks.mT
        dq, from_state = pair @ ks, (gs @ before.mT).mul_(w.query)
        dk, to_state = pair.mT @ qs, (vs @ after.mT).mul_(w.key)
        if grad_decay is not None:
            kept = precise(before * after).sum((-2, -1)) * w.state[..., 0, 0]
            through = (qs * from_state).sum(-1), (ks * to_state).sum(-1), kept
            grad_decay[:, span[0] : span[1]] = _decay_gradient(scores * pair, *through).flatten(2).transpose(1, 2)
        dq += from_state
        dk += to_state
        dv = scores.mul_(w.pair).mT @ gs
        dv += weighted @ after
        for full, part in ((grad_q, dq), (grad_k, dk), (grad_v, dv)):
            full[:, span[0] : span[1]] = part.flatten(2, 3).transpose(1, 2)
    return grad_q, grad_k, grad_v, grad_state
