"""Linear attention in chunks (Lightning Attention-2, Qin et al. 2024, arXiv:2401.04658) in plain PyTorch.

Inside a chunk of C tokens the masked left product is taken directly; between chunks a running state is carried. All
exponents are differences that are <= 0, so no decay can overflow. Chunks are worked through in segments small enough
for the cache, and the backward pass recomputes what it needs from the inputs and one state per segment.

Letters: n chunks of c tokens in a segment; D key width; E value width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from zoo_kernels.chunks import Chunking, Segments, Weights, decay_gradient, decay_weights, precise, within_documents


class _Segments(Segments):
    """The segments of one call, with their weights."""

    def __init__(
        self, q: Tensor, log_decay: Tensor | None, documents: Tensor | None, scale: float, cut: Chunking
    ) -> None:
        super().__init__("linear", q, (q.shape[0], q.shape[2]), q.shape[-1], cut)
        self.scale = scale
        self.constant: dict[int, Weights] = {}
        self.log_decay = precise(torch.zeros(1, device=q.device) if log_decay is None else log_decay)
        self.of_tokens = self.views(self.log_decay[..., None]) if self.log_decay.dim() == 3 else None
        self.documents = None if documents is None else self.document_views(documents)

    def weights(self, i: int) -> Weights:
        """Factors of segment ``i``; those of one decay per head are the same for all chunks of a size."""
        chunk = self.chunks[i]
        if self.of_tokens is not None:
            decay = decay_weights(self.of_tokens[i], self.dtype, self.scale)
        elif chunk in self.constant:
            decay = self.constant[chunk]
        else:
            every_token = self.log_decay[:, None, None].expand(1, 1, -1, chunk, 1)
            decay = self.constant[chunk] = decay_weights(every_token, self.dtype, self.scale)
        return decay if self.documents is None else within_documents(decay, *(ids[i] for ids in self.documents))


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
    cut: Chunking,
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


def chunked_backward(
    inputs: tuple[Tensor, Tensor, Tensor],
    log_decay: Tensor | None,
    documents: Tensor | None,
    starts: Tensor,
    scale: float,
    cut: Chunking,
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
            decay_views[i][..., 0] = decay_gradient(scores.wide * pair.wide, *through)
        dq.multiply(pair.flat, k.flat, add=True)
        dk.multiply(pair.turned, q.flat, add=True)
        scores.wide.mul_(w.pair)
        dv.multiply(scores.turned, g.flat, add=True)
        for wanted, part in (to_q, dq), (to_k, dk), (to_v, dv):
            wanted.copy_(part.wide)
    return grad_q, grad_k, grad_v, grad_state.clone()
