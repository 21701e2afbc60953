"""Every kernel against its formula in fp64: all options and gradients, decoding, huge arrays, equal repeats."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import torch
from torch import Tensor

import kernels
from kernel_bench.bench import REPEATS, Bench, Row, Shape
from kernel_bench.inputs import slopes
from kernel_bench.judge import judge
from kernel_bench.linear_cases import check_linear, linear_cases
from kernel_bench.plain import plain_linear, plain_softmax, visible_pairs
from kernel_bench.softmax_cases import check_softmax, softmax_cases


def _dtypes(bench: Bench) -> tuple[torch.dtype, ...]:
    return (torch.float16,) if bench.dry else (torch.bfloat16, torch.float16)  # the interpreter's bf16 is wrong


def correctness_linear(bench: Bench) -> None:
    """Linear attention, forward and backward, and that a repeat gives the same bits."""
    cases = product(_dtypes(bench), linear_cases(bench.dry))
    bench.each(cases, lambda item: check_linear(bench, *item), _label)
    bench.each(["linear repeats"], lambda name: _repeats(bench, name, _linear_passes(bench)))


def correctness_softmax(bench: Bench) -> None:
    """Softmax attention, forward and backward, and that a repeat gives the same bits."""
    cases = product(_dtypes(bench), softmax_cases(bench.dry))
    bench.each(cases, lambda item: check_softmax(bench, *item), _label)
    names = {f"softmax repeats G{groups}": groups for groups in (4, 1)}
    bench.each(names, lambda name: _repeats(bench, name, _softmax_passes(bench, names[name])))


def _label(item: tuple[torch.dtype, Any]) -> str:
    return f"{item[1]} {str(item[0]).removeprefix('torch.')}"


def _long(bench: Bench) -> Shape:
    return Shape(1, 20, 2, 16) if bench.dry else Shape(2, 3000, 8, 128)


def _draw(bench: Bench, shape: Shape, groups: int = 0) -> dict[str, Tensor]:
    torch.manual_seed(0)
    dtype = _dtypes(bench)[0]
    heads = {"q": shape.heads, "k": groups or shape.heads, "v": groups or shape.heads}
    size = {name: (shape.batch, shape.length, n, shape.width) for name, n in heads.items()}
    return {n: torch.randn(*s, device=bench.device).to(dtype).requires_grad_() for n, s in size.items()}


def _linear_passes(bench: Bench) -> Callable[[], list[Tensor]]:
    shape = _long(bench)
    x = _draw(bench, shape)
    x["decay"] = slopes(shape.heads, bench.device).requires_grad_()

    def run() -> list[Tensor]:
        o, _ = bench.ours(kernels.linear_attention)(*x.values(), scale=0.1)
        return [o, *torch.autograd.grad(o.square().sum(), list(x.values()))]

    return run


def _softmax_passes(bench: Bench, groups: int) -> Callable[[], list[Tensor]]:
    shape = _long(bench)
    x = _draw(bench, shape, min(groups, shape.heads))

    def run() -> list[Tensor]:
        o = bench.ours(kernels.softmax_attention)(*x.values())
        return [o, *torch.autograd.grad(o.square().sum(), list(x.values()))]

    return run


def _repeats(bench: Bench, name: str, run: Callable[[], list[Tensor]]) -> None:
    first = run()
    different = 0
    for _ in range(1 if bench.dry else 20):
        different += sum(not torch.equal(a, b) for a, b in zip(first, run()))
    row = Row(name, _long(bench), _dtypes(bench)[0], "ours", "forward+backward")
    bench.add(row, REPEATS, different, "", "<= 0")


def correctness_large(bench: Bench) -> None:
    """Arrays of more than 2^31 numbers: the last tokens of the last head, against the formula on them alone."""
    shape = Shape(1, 300, 2, 16) if bench.dry else Shape(1, 140_000, 128, 128)
    bench.each(["large linear", "large softmax"], lambda name: _large(bench, name, shape))


def _large(bench: Bench, name: str, shape: Shape) -> None:
    dtype, keep = _dtypes(bench)[0], 64  # tokens compared; what lies further back than ``reach`` has no weight
    reach = 64 if bench.dry else 192
    softmax = name.endswith("softmax")
    x = _draw(bench, shape)
    decay = torch.full((shape.heads,), -1.0, device=bench.device)
    upstream = torch.randn_like(x["q"])
    if softmax:
        o = bench.ours(kernels.softmax_attention)(*x.values(), window=reach)
    else:
        o, _ = bench.ours(kernels.linear_attention)(*x.values(), decay)
    grads = torch.autograd.grad(o, list(x.values()), upstream)
    got = {"output": o, **{f"grad {n}": g for n, g in zip(x, grads)}}
    got = {n: g[:, -keep:, -1:].clone() for n, g in got.items()}

    def plain(kind: torch.dtype) -> dict[str, Tensor]:
        y = {n: a.detach()[:, -(keep + reach) :, -1:].to(kind).requires_grad_() for n, a in x.items()}
        if softmax:
            pairs = visible_pairs(keep + reach, keep + reach, bench.device, reach)
            o, _ = plain_softmax(y["q"], y["k"], y["v"], pairs)
        else:
            empty = torch.zeros(1, 1, shape.width, shape.width, device=bench.device)
            o, _ = plain_linear(y["q"], y["k"], y["v"], decay[-1:], empty)
        grads = torch.autograd.grad(o, list(y.values()), upstream[:, -(keep + reach) :, -1:].to(kind))
        return {n: a[:, -keep:] for n, a in {"output": o, **{f"grad {n}": g for n, g in zip(y, grads)}}.items()}

    judge(bench, name, shape, dtype, got, plain(dtype), plain(torch.float64))
