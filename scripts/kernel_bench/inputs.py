"""Random inputs in as many copies as the cache of a GPU needs to forget them, and the calls that are timed on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kernel_bench.bench import Bench, Shape
from kernel_bench.timing import Run

FORWARD, BACKWARD, BOTH = "forward", "backward", "forward+backward"
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


def copies(bench: Bench, nbytes: float) -> int:
    """Sets of inputs of ``nbytes`` each that together do not stay in the cache."""
    return 1 if bench.device.type == "cpu" else max(1, min(16, int(CACHE // max(nbytes, 1.0)) + 1))


def draw_inputs(bench: Bench, shape: Shape, dtype: torch.dtype) -> list[Inputs]:
    """Sets of q, k, v, which want gradients, and an upstream gradient."""
    b, t, h, d, _ = shape
    generator = torch.Generator(bench.device).manual_seed(0)

    def draw(heads: int, leaf: bool = True) -> Tensor:
        x = torch.randn(b, t, heads, d, dtype=dtype, device=bench.device, generator=generator)
        return x.requires_grad_(leaf)

    nbytes = 4 * b * t * h * d * dtype.itemsize
    wanted = range(copies(bench, nbytes))
    return [Inputs(draw(h), draw(shape.key_heads), draw(shape.key_heads), draw(h, leaf=False)) for _ in wanted]


def timed(attention: Attention, sets: list[Inputs], direction: str) -> Run:
    """The function to time: one pass over set number i, round and round."""
    if direction == FORWARD:
        return _forward(attention, sets)
    if direction == BOTH:
        return lambda i: _gradients(attention(*sets[i % len(sets)][:3]), sets[i % len(sets)], False)
    outputs: list[Tensor] = []

    def backward(i: int) -> Any:
        if not outputs:
            outputs.extend(attention(*each[:3]) for each in sets)
        return _gradients(outputs[i % len(sets)], sets[i % len(sets)], True)

    return backward


def _forward(attention: Attention, sets: list[Inputs]) -> Run:
    leaves = [[x.detach() for x in each[:3]] for each in sets]  # some peers look at requires_grad alone

    @torch.no_grad()
    def forward(i: int) -> Tensor:
        return attention(*leaves[i % len(leaves)])

    return forward


def _gradients(output: Tensor, inputs: Inputs, keep: bool) -> tuple[Tensor, ...]:
    return torch.autograd.grad(output, inputs[:3], inputs.grad, retain_graph=keep)


def low_precision(bench: Bench) -> torch.dtype:
    """The type that speed is measured in: bf16, or fp32 where the interpreter or the CPU computes."""
    return torch.bfloat16 if bench.device.type == "cuda" else torch.float32
