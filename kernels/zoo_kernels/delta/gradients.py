"""Backward pass of delta attention in chunks: it computes the segments again, from the state before each."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo_kernels.chunks import Buffer
from zoo_kernels.delta.arguments import DeltaArguments, DeltaUpstream
from zoo_kernels.delta.chunked import Call, Solved
from zoo_kernels.delta.decays import Pairs


class Backward:
    """Gradients of one call, filled segment by segment from the last to the first."""

    def __init__(self, x: DeltaArguments, up: DeltaUpstream) -> None:
        self.call, self.scale = Call(x), x.scale
        self.rows, self.upstream = x.state.shape[0] * x.state.shape[1], self.call.segments.views(up.grad_output)
        self.found = {name: torch.empty_like(getattr(x, name), memory_format=torch.contiguous_format) for name in "qkv"}
        for name in ("beta", "read", "erase"):
            if (array := getattr(x, name)) is not None:
                self.found[name] = torch.empty(array.shape, dtype=array.dtype, device=array.device)
        self.decay_gradient = up.decay_gradient
        if up.decay_gradient:
            width = x.q.shape[-1] if self.call.by_channel else 1
            kind = self.call.segments.dtype if self.call.by_channel else torch.float64
            kind = torch.float32 if x.v.device.type == "mps" else kind
            self.found["log_decay"] = torch.empty(*x.v.shape[:3], width, dtype=kind, device=x.v.device)
        views = self.call.segments.views
        self.views = {n: views(f[..., None] if n == "beta" else f) for n, f in self.found.items()}

    def segment(self, i: int, state: Tensor, grad_state: Tensor) -> Tensor:
        """Gradients of segment ``i`` from that of the state after it; gives that of the state before it."""
        call, decays, c = self.call, self.call.decays, self.call.rows(i)
        make, product, s = call.segments.buffer, call.segments.product, call.solve(i, state)
        n = s.x.wide.shape[0]
        of_reads = make("of reads", n, s.x.flat.shape[1], call.value)
        call.fill(of_reads.wide[..., :c, :], self.upstream[i])
        of_values = product("of values", s.a.flat[:, :c].mT, of_reads.flat[:, :c])
        of_states = make("of states", n + 1, call.width, call.value)
        of_states.wide[-1] = grad_state
        of_system = self._retreat(s, c, of_reads, of_values, of_states)
        before, after = s.states.flat[: -self.rows], of_states.flat[self.rows :]
        grad = product("of products", of_reads.flat, s.values.turned)
        to_x, to_y = product("to x", of_reads.flat, before.mT), product("to y", s.values.flat, after.mT)
        to_x.wide.unflatten(-2, (-1, c)).mul_(decays.query[..., None, :, :])
        to_y.wide.unflatten(-2, (-1, c)).mul_(decays.key[..., None, :, :])
        pairs, kept = Pairs(s.x, s.y, s.a, grad, to_x, to_y), None
        if self.decay_gradient:
            kept = torch.mul(before, after, out=make("kept", n, call.width, call.value).flat)
            kept = kept.sum(-1).unflatten(0, s.x.wide.shape[:3])
        of_decay = decays.gradients(pairs, kept)
        if of_decay is not None:
            self.views["log_decay"][i].copy_(of_decay)
        self._write(i, c, s, pairs, of_reads, of_values, of_system)
        return of_states.wide[0]

    def _retreat(self, s: Solved, c: int, of_reads: Buffer, of_values: Buffer, of_states: Buffer) -> Buffer | None:
        """Gradients of what is read and of the states, chunk by chunk; those of the right sides of the systems."""
        states, kept = of_states.flat.split(self.rows), self.call.decays.state
        kept = kept.expand(s.x.wide.shape[0], *self.call.segments.rows, -1, 1).flatten(1, 2)
        reads, of_read = s.reads.turned.split(self.rows), of_reads.flat.split(self.rows)
        writes, values = s.writes.flat.split(self.rows), of_values.flat.split(self.rows)
        of_system = None if s.inverse is None else self.call.segments.buffer("system", len(kept), c, self.call.value)
        systems = [] if of_system is None else of_system.flat.split(self.rows)
        inverse = [] if s.inverse is None else s.inverse.mT.split(self.rows)
        beta = None if s.beta is None else s.beta.flatten(0, 2).neg().split(self.rows)
        for j in reversed(range(len(kept))):
            values[j].baddbmm_(writes[j], states[j + 1])
            if systems:
                torch.bmm(inverse[j], values[j][:, :c], out=systems[j])
                read = of_read[j][:, c:]
                torch.neg(systems[j], out=read) if beta is None else torch.mul(systems[j], beta[j], out=read)
            torch.mul(states[j + 1], kept[j], out=states[j])
            states[j].baddbmm_(reads[j], of_read[j])
        return of_system

    def _write(
        self, i: int, c: int, s: Solved, pairs: Pairs, of_reads: Buffer, of_values: Buffer, of_system: Buffer | None
    ) -> None:
        x, y = pairs.to_x.wide.split(c, -2), pairs.to_y.wide.split(c, -2)
        reads = of_reads.wide.split(c, -2)
        self.put("q", i, x[0].mul_(self.scale))
        if s.beta is not None and s.target is not None and of_system is not None:
            self.put("k", i, y[0].add_(x[1]))
            self.put("v", i, reads[1].neg())
            missed = s.target.flat.baddbmm_(s.a.flat[:, c:], s.values.flat, alpha=-1)  # values less what was read
            self.put("beta", i, missed.mul_(of_system.flat).sum(-1, keepdim=True).view_as(s.beta))
            return
        self.put("k", i, y[-1])
        if s.inverse is not None:
            self.put("read", i, x[1])
            self.put("erase", i, y[0])
            of_values.flat[:, c:].baddbmm_(s.a.flat[:, c:, c:].mT, of_reads.flat[:, c:])
        self.put("v", i, of_values.wide[..., -c:, :])

    def put(self, name: str, i: int, found: Tensor) -> None:
        """Writes a gradient, summed over the value heads that share a head."""
        wanted = self.views[name][i]
        found = found[..., : wanted.shape[3], :]
        if found.shape[2] != wanted.shape[2]:
            found = found.unflatten(2, (wanted.shape[2], -1)).sum(3)
        wanted.copy_(found)


def delta_backward(x: DeltaArguments, up: DeltaUpstream) -> dict[str, Tensor]:
    """Gradients by the name of what they are of; that of the log decay is of each token, ``(B, T, Hv, 1 or D)``."""
    backward, grad_state = Backward(x, up), up.grad_final
    for i in reversed(range(len(backward.call))):
        grad_state = backward.segment(i, up.starts[i], grad_state)
    return backward.found | {"state": grad_state.clone()}
