"""Delta attention in chunks (the WY form of Yang et al. 2024, arXiv:2406.06484) in plain PyTorch.

Queries and reads are the readers ``x`` of a state, erases and keys its writers ``y``. Once it is known what each token
erases, all is linear attention: a reader gets ``x_t S_t`` from what was written before it. What is erased solves one
triangular system per chunk, ``u = beta (t - A u)``: t is the value less what the state before the chunk holds for the
read, A the products of reads and erases. With beta, u = the value less all that the read finds, times beta, is written
at the key; with reads and erases of their own u is what is erased, negated, beside the value that is written.

Backwards it is the same: with the gradients of the reads, which solve the transposed system, all is the backward pass
of linear attention.

Letters: n chunks of c tokens in a segment; N = n B Hv; s readers and z writers a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from zoo_kernels.chunks import Buffer, Chunking, Segments, plan
from zoo_kernels.delta.arguments import DeltaArguments
from zoo_kernels.delta.decays import ChannelDecays, Decays, HeadDecays, padded

CHUNK = 32  # tokens: a solve takes a chunk's square a token, a chunk a step of the loop
KEPT = 64  # tokens at least for each state that is kept for the backward pass


def cut_of(q: Sequence[int], v: Sequence[int]) -> Chunking:
    """Cut of sequences with q and v of these shapes."""
    made = plan(v[0], v[1], v[2], max(q[3], v[3]), "chunk", CHUNK)
    return made._replace(segment=max(made.segment, KEPT // CHUNK))


class Solved(NamedTuple):
    """What the forward pass of a segment leaves in buffers.

    Attributes:
        x: readers, as in :class:`zoo_kernels.delta.decays.Pairs`.
        y: writers, as there.
        a: products of readers and writers, as there.
        reads: readers times what the state before the chunk keeps.
        writes: writers times what they keep in the state after the chunk.
        values: what is written at each writer ``(N, z c, E)``.
        states: ``(n + 1, B, H, D, E)``.
        target: t ``(N, c, E)``; None without erase.
        inverse: ``(I + beta A)^-1`` ``(N, c, c)``; None without erase.
        beta: ``(n, B, H, c, 1)``.
    """

    x: Buffer
    y: Buffer
    a: Buffer
    reads: Buffer
    writes: Buffer
    values: Buffer
    states: Buffer
    target: Buffer | None
    inverse: Tensor | None
    beta: Tensor | None


Side = tuple[list[Tensor], Tensor | None]  # the segments of an array, and a number that multiplies it


class Call:
    """One call: its arrays cut into segments, and what a segment computes."""

    def __init__(self, x: DeltaArguments) -> None:
        batch, _, heads, value = x.v.shape
        width = x.q.shape[-1]
        cut = cut_of(x.q.shape, x.v.shape)
        self.heads, self.width, self.value = heads, width, value
        self.segments = Segments("delta", x.v, (batch, heads), max(width, value), cut)
        self.by_channel = x.log_decay is not None and x.log_decay.dim() == 4
        of_channels = x.log_decay if self.by_channel else None
        self.decays: Decays = (
            HeadDecays(self.segments, x.log_decay, x.documents)
            if of_channels is None
            else ChannelDecays(self.segments, x.documents)
        )
        self.log_decays = None if of_channels is None else self.segments.views(of_channels)
        scale = torch.full((1,), x.scale, dtype=self.segments.dtype, device=x.q.device)
        self.readers: list[Side] = [(self.segments.views(x.q), scale)]
        self.writers: list[Side] = [(self.segments.views(x.k), None)]
        self.beta = None if x.beta is None else self.segments.views(x.beta[..., None])
        self.erases, self.writes_too = x.beta is not None or x.read is not None, x.beta is None
        if x.beta is not None:
            self.readers.append((self.segments.views(x.k), None))
        if x.read is not None and x.erase is not None:
            self.readers.append((self.segments.views(x.read), None))
            self.writers.insert(0, (self.segments.views(x.erase), None))
        self.values = self.segments.views(x.v)

    def __len__(self) -> int:
        return len(self.segments.chunks)

    def rows(self, i: int) -> int:
        """Rows of a chunk of segment ``i``: its tokens, or as many as halves need."""
        return padded(self.segments.chunks[i]) if self.by_channel else self.segments.chunks[i]

    def load(self, name: str, i: int, views: list[Side]) -> Buffer:
        """Copies of arrays side by side, each times a number; heads are repeated, tokens beyond the sequence are 0."""
        c, (n, *_, width) = self.rows(i), views[0][0][i].shape
        made = self.segments.buffer(name, n, c * len(views), width)
        for (segments, weight), into in zip(views, made.wide.split(c, -2)):
            self.fill(into, segments[i], weight)
        return made

    def fill(self, into: Tensor, view: Tensor, weight: Tensor | None = None) -> None:
        """Copies ``view`` into a part of a buffer."""
        heads, rest = view.shape[2], view.shape[3]
        if rest < into.shape[-2]:
            into[..., rest:, :] = 0
        into = into[..., :rest, :].unflatten(2, (heads, -1))
        view = view[:, :, :, None].expand_as(into)
        if weight is None:
            into.copy_(view)
        else:
            torch.mul(view, weight, out=into)

    def solve(self, i: int, state: Tensor) -> Solved:
        """The forward pass of segment ``i`` up to the states."""
        make, decays, c = self.segments.buffer, self.decays, self.rows(i)
        decays.enter(i, None if self.log_decays is None else self.log_decays[i])
        x, y = self.load("x", i, self.readers), self.load("y", i, self.writers)
        n, readers, writers = x.wide.shape[0], x.flat.shape[1], y.flat.shape[1]
        a = make("a", n, readers, writers)
        decays.products(x, y, a)
        reads, writes = make("reads", n, readers, self.width), make("writes", n, writers, self.width)
        torch.mul(x.wide.unflatten(-2, (-1, c)), decays.query[..., None, :, :], out=reads.wide.unflatten(-2, (-1, c)))
        torch.mul(y.wide.unflatten(-2, (-1, c)), decays.key[..., None, :, :], out=writes.wide.unflatten(-2, (-1, c)))
        values = make("values", n, writers, self.value)
        states = make("states", n + 1, self.width, self.value)
        states.wide[0] = state
        if self.writes_too:
            self.fill(values.wide[..., -c:, :], self.values[i])
        solved = Solved(x, y, a, reads, writes, values, states, None, None, None)
        if self.erases:
            solved = self._with_system(solved, i)
        self._advance(solved, c)
        return solved

    def _with_system(self, s: Solved, i: int) -> Solved:
        """Its triangular system: the inverse, and the targets without what the states hold."""
        n, c = s.x.wide.shape[0], self.rows(i)
        target, lower = self.segments.buffer("target", n, c, self.value), s.a.wide[..., c:, :c]
        beta = None
        if self.beta is None:
            target.flat.baddbmm_(s.a.flat[:, c:, c:], s.values.flat[:, c:], beta=0, alpha=-1)
        else:
            self.fill(target.wide, self.values[i])
            beta = self.segments.buffer("beta", n, c, 1).wide
            self.fill(beta, self.beta[i])
            lower = torch.mul(lower, beta, out=self.segments.buffer("lower", n, c, c).wide)
        one = torch.eye(c, dtype=lower.dtype, device=lower.device).expand(*lower.shape)
        inverse = torch.linalg.solve_triangular(lower.mT, one, upper=True, left=False, unitriangular=True).mT
        return s._replace(target=target, inverse=inverse.flatten(0, 2), beta=beta)

    def _advance(self, s: Solved, c: int) -> None:
        """States after each chunk, and what is erased in it."""
        rows = self.segments.rows[0] * self.segments.rows[1]
        states = s.states.flat.split(rows)
        kept = self.decays.state.expand(s.x.wide.shape[0], *self.segments.rows, -1, 1).flatten(1, 2)
        writes, values = s.writes.turned.split(rows), s.values.flat.split(rows)
        steps: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        if s.inverse is not None and s.target is not None:
            weighted = s.inverse if s.beta is None else s.inverse * s.beta.flatten(0, 2).mT
            parts = s.target.flat, s.reads.flat[:, c:], weighted, s.values.flat[:, :c]
            steps = list(zip(*(part.split(rows) for part in parts)))
        for j in range(len(kept)):
            if steps:
                target, read, weight, erased = steps[j]
                target.baddbmm_(read, states[j], alpha=-1)
                torch.bmm(weight, target, out=erased)
            torch.mul(states[j], kept[j], out=states[j + 1])
            states[j + 1].baddbmm_(writes[j], values[j])


def delta_forward(x: DeltaArguments, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Output ``(B, T, Hv, E)`` in ``dtype``, final state, and the states before the segments ``(n, B, Hv, D, E)``."""
    call, state = Call(x), x.state
    output = torch.empty(x.v.shape, dtype=dtype, device=x.v.device)
    starts = torch.empty(len(call), *state.shape, dtype=state.dtype, device=state.device)
    rows = state.shape[0] * state.shape[1]
    for i, wanted in enumerate(call.segments.views(output)):
        starts[i] = state
        s, c = call.solve(i, state), call.rows(i)
        out = call.segments.product("out", s.reads.flat[:, :c], s.states.flat[:-rows])
        out.multiply(s.a.flat[:, :c], s.values.flat, add=True)
        wanted.copy_(out.wide[..., : wanted.shape[3], :])
        state = s.states.wide[-1]
    return output, state.clone(), starts
