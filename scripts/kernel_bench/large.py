"""Arrays of more than 2^31 numbers, whose last ones a kernel with offsets of 32 bits would not reach."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor

import zoo_kernels
from kernel_bench.bench import Bench, Shape
from kernel_bench.correctness import dtypes, label, leaves
from kernel_bench.judge import Found, judge
from kernel_bench.patterns import layout_of, tokens_of, window_blocks
from kernel_bench.plain import plain_linear, plain_softmax, visible_pairs

KEEP = 64  # last tokens, which are compared


class Large(NamedTuple):
    """A call whose last KEEP outputs and gradients depend on the last ``span`` tokens alone."""

    name: str
    span: int
    window: int | None = None
    near: int = 0  # blocks of a layout that a block lists
    block: int = 64

    def __str__(self) -> str:
        return f"large {self.name}"


def correctness_large(bench: Bench) -> None:
    """The last tokens of the last head, against the formula on those that they depend on."""
    shape = Shape(1, 140, 2, 16) if bench.dry else Shape(1, 140_000, 128, 128)
    reach, block = (32, 16) if bench.dry else (192, 64)
    whole_blocks = KEEP + reach + shape.length % block  # so that the span begins where a block does
    kinds = [
        Large("linear", KEEP + reach),
        Large("softmax", shape.length),
        Large("softmax, window", KEEP + reach, window=reach),
        Large("softmax, layout", whole_blocks, near=reach // block, block=block),
    ]
    cases: Iterable[tuple[torch.dtype, Large]] = product(dtypes(bench), kinds)
    bench.each(cases, lambda item: _check(bench, *item, shape), label, alike=True)


def _check(bench: Bench, dtype: torch.dtype, case: Large, shape: Shape) -> None:
    x = leaves(bench, shape, dtype)
    upstream = torch.randn_like(x["q"])
    o = _ours(bench, case, x)
    grads = torch.autograd.grad(o, list(x.values()), upstream)
    got = {n: g[:, -KEEP:, -1:].clone() for n, g in _named(o, x, grads).items()}
    tail = {n: a.detach()[:, -case.span :, -1:] for n, a in x.items()}

    def plain(kind: torch.dtype) -> Found:
        y = {n: a.to(kind).requires_grad_() for n, a in tail.items()}
        o = _plain(case, y)
        grads = torch.autograd.grad(o, list(y.values()), upstream[:, -KEEP:, -1:].to(kind))
        return {n: a[:, -KEEP:] for n, a in _named(o, y, grads).items()}

    judge(bench, str(case), shape, dtype, got, plain(dtype), plain(torch.float64))


def _named(o: Tensor, x: dict[str, Tensor], grads: Iterable[Tensor]) -> Found:
    return {"output": o, **{f"grad {n}": g for n, g in zip(x, grads)}}


def _decay(x: dict[str, Tensor]) -> Tensor:
    """So strong that what lies further back than the span has no weight."""
    return torch.full((x["q"].shape[2],), -1.0, device=x["q"].device)


def _ours(bench: Bench, case: Large, x: dict[str, Tensor]) -> Tensor:
    if case.name == "linear":
        return bench.ours(zoo_kernels.linear_attention)(*x.values(), _decay(x))[0]
    options: dict[str, Any] = {"window": case.window}
    if case.near:
        blocks = window_blocks(-(-x["q"].shape[1] // case.block), case.near)
        options = {"layout": layout_of(blocks, case.block, bench.device)}
    return bench.ours(zoo_kernels.softmax_attention)(*x.values(), **options)


def _plain(case: Large, y: dict[str, Tensor]) -> Tensor:
    """The last outputs of the last head."""
    q, k, v = y.values()
    if case.name == "linear":
        empty = torch.zeros(1, 1, q.shape[-1], v.shape[-1], device=q.device)
        return plain_linear(q, k, v, _decay(y), empty)[0][:, -KEEP:]
    allowed = visible_pairs(KEEP, case.span, q.device, case.window)
    if case.near:
        blocks = window_blocks(-(-case.span // case.block), case.near)
        allowed = tokens_of(blocks, case.block, case.span)[..., -KEEP:, :].to(q.device)
    return plain_softmax(q[:, -KEEP:], k, v, allowed)[0]
