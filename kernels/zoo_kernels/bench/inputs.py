"""Random inputs, in as many copies as the cache of a GPU needs to forget them, and the calls that are timed on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from zoo_kernels.bench.clock import Run
from zoo_kernels.bench.record import BOTH, FORWARD, Shape

CACHE = 200e6  # bytes, several times the level-2 cache of a GPU
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]  # (B, T, H, D) arrays


class Inputs(NamedTuple):
    """Arrays of one call, and the gradient that arrives at its output."""

    q: Tensor
    k: Tensor
    v: Tensor
    grad: Tensor


def slopes(heads: int, device: torch.device) -> Tensor:
    """Log decays of lightning attention's first layer, ``-2^(-8 (h + 1) / H)``: ``(H,)`` fp32."""
    return -(2.0 ** (-8.0 * (torch.arange(heads, dtype=torch.float32, device=device) + 1) / heads))


def draw_inputs(device: torch.device, shape: Shape, dtype: torch.dtype, queries: int = 0) -> list[Inputs]:
    """Sets of q, k, v, which want gradients, and an upstream gradient; ``queries``: fewer of them than keys."""
    b, t, h, d, _ = shape
    generator = torch.Generator(device).manual_seed(0)

    def draw(length: int, heads: int) -> Tensor:
        x = torch.randn(b, length, heads, d, dtype=dtype, device=device, generator=generator)
        return x.requires_grad_()

    def one() -> Inputs:
        q, grad = draw(queries or t, h), draw(queries or t, h).detach()
        return Inputs(q, draw(t, shape.key_heads), draw(t, shape.key_heads), grad)

    first = one()
    nbytes = sum(x.nbytes for x in first)
    copies = 1 if device.type == "cpu" else max(1, min(16, int(CACHE // max(nbytes, 1)) + 1))
    return [first, *(one() for _ in range(copies - 1))]


def timed(attention: Attention, sets: list[Inputs], direction: str) -> Run:
    """The function to time: one pass over set number i, round and round."""
    if direction == FORWARD:
        leaves = [[x.detach() for x in each[:3]] for each in sets]  # some peers look at requires_grad alone
        return torch.no_grad()(lambda i: attention(*leaves[i % len(leaves)]))
    if direction == BOTH:
        return lambda i: _gradients(attention(*sets[i % len(sets)][:3]), sets[i % len(sets)], False)
    outputs: list[Tensor] = []

    def backward(i: int) -> Any:
        if not outputs:
            outputs.extend(attention(*each[:3]) for each in sets)
        return _gradients(outputs[i % len(sets)], sets[i % len(sets)], True)

    return backward


def _gradients(output: Tensor, inputs: Inputs, keep: bool) -> tuple[Tensor, ...]:
    return torch.autograd.grad(output, inputs[:3], inputs.grad, retain_graph=keep)


def decays_of(kind: str, batch: int, length: int, heads: int, device: torch.device) -> Tensor | None:
    """Log decays, fp32: ``(H,)`` or, by token, ``(B, T, H)``, or None."""
    index = torch.arange(heads, dtype=torch.float32, device=device)
    if kind == "token":
        return -20 * torch.rand(batch, length, heads, device=device) ** 4
    return {"slopes": slopes(heads, device), "paper": -7 * index / heads, "strong": 0 * index - 20}.get(kind)


def documents_of(lengths: tuple[int, ...], batch: int, length: int, device: torch.device) -> Tensor | None:
    """Ids of tokens ``(B, T)``, neither sorted nor dense; the first document is shorter by row. None for no lengths."""
    if not lengths:
        return None
    ids = torch.cat([torch.full((n,), (7 * i + 3) % 11) for i, n in enumerate(lengths)])
    ids = torch.nn.functional.pad(ids, (0, max(0, length + batch - len(ids))), value=99)
    return torch.stack([ids[row : row + length] for row in range(batch)]).to(device)
