"""Every kernel against its formula in fp64: all options and gradients, and that repeats are equal."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import torch
from torch import Tensor

import zoo_kernels
from kernel_bench.bench import REPEATS, Bench, Row, Shape
from kernel_bench.inputs import slopes
from kernel_bench.linear_cases import check_linear, linear_cases
from kernel_bench.softmax_cases import check_softmax, softmax_cases


def dtypes(bench: Bench) -> tuple[torch.dtype, ...]:
    """Those in which kernels are checked."""
    return (torch.float16,) if bench.dry else (torch.bfloat16, torch.float16)  # the interpreter's bf16 is wrong


def correctness_linear(bench: Bench) -> None:
    """Linear attention, forward and backward, and that a repeat gives the same bits."""
    cases = product(dtypes(bench), linear_cases(bench.dry))
    bench.each(cases, lambda item: check_linear(bench, *item), label, alike=True)
    bench.each(["linear repeats"], lambda name: _repeats(bench, name, _linear_passes(bench)))


def correctness_softmax(bench: Bench) -> None:
    """Softmax attention, forward and backward, and that a repeat gives the same bits."""
    cases = product(dtypes(bench), softmax_cases(bench.dry))
    bench.each(cases, lambda item: check_softmax(bench, *item), label, alike=True)
    names = {f"softmax repeats G{groups}": groups for groups in (4, 1)}
    bench.each(names, lambda name: _repeats(bench, name, _softmax_passes(bench, names[name])))


def label(item: tuple[torch.dtype, Any]) -> str:
    """Name of a case in a type."""
    return f"{item[1]} {str(item[0]).removeprefix('torch.')}"


def _long(bench: Bench) -> Shape:
    return Shape(1, 20, 2, 16) if bench.dry else Shape(2, 3000, 8, 128)


def leaves(bench: Bench, shape: Shape, dtype: torch.dtype) -> dict[str, Tensor]:
    """Random q, k and v that want gradients."""
    torch.manual_seed(0)
    heads = {"q": shape.heads, "k": shape.key_heads, "v": shape.key_heads}
    size = {name: (shape.batch, shape.length, n, shape.width) for name, n in heads.items()}
    return {n: torch.randn(*s, device=bench.device).to(dtype).requires_grad_() for n, s in size.items()}


def _linear_passes(bench: Bench) -> Callable[[], list[Tensor]]:
    shape = _long(bench)
    x = leaves(bench, shape, dtypes(bench)[0])
    x["decay"] = slopes(shape.heads, bench.device).requires_grad_()

    def run() -> list[Tensor]:
        o, _ = bench.ours(zoo_kernels.linear_attention)(*x.values(), scale=0.1)
        return [o, *torch.autograd.grad(o.square().sum(), list(x.values()))]

    return run


def _softmax_passes(bench: Bench, groups: int) -> Callable[[], list[Tensor]]:
    shape = _long(bench)
    x = leaves(bench, shape._replace(groups=min(groups, shape.heads)), dtypes(bench)[0])

    def run() -> list[Tensor]:
        o = bench.ours(zoo_kernels.softmax_attention)(*x.values())
        return [o, *torch.autograd.grad(o.square().sum(), list(x.values()))]

    return run


def _repeats(bench: Bench, name: str, run: Callable[[], list[Tensor]]) -> None:
    first = run()
    different = 0
    for _ in range(1 if bench.dry else 20):
        different += sum(not torch.equal(a, b) for a, b in zip(first, run()))
    row = Row(name, _long(bench), dtypes(bench)[0], "ours", "forward+backward")
    bench.add(row, REPEATS, different, "", "<= 0")
