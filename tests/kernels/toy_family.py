"""A third family as small as one can be, through which a test sends all that Family and Op promise.

``y = power * weight * x + the sum of more``: an optional number, a tensor and a list of tensors, a further output that
has no gradient, a step that writes to its state.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from zoo_kernels.backend import without_autocast
from zoo_kernels.family import Family, Op
from zoo_kernels.launch import ARCHITECTURES, INTERPRETER, Config

_ROWS = {(4, 32): Config({"TILE": 16}, 4, 1)}
TOY = Family(
    "toy",
    "toy attention",
    widths={torch.float32: 32},
    tiles={"scaled": dict.fromkeys((*ARCHITECTURES, INTERPRETER), _ROWS)},
    calls="tests.kernels.toy_calls",
)


class ToyArguments(NamedTuple):
    x: Tensor
    weight: Tensor
    bias: Tensor | None
    more: list[Tensor]
    power: int | None
    backend: str


class ToyUpstream(NamedTuple):
    norm: Tensor
    grad: Tensor


class ToyToken(NamedTuple):
    x: Tensor
    state: Tensor
    backend: str


def finished(a: ToyArguments, y: Tensor) -> tuple[Tensor, Tensor]:
    y = y * (1 if a.power is None else a.power) + sum(a.more)
    return y if a.bias is None else y + a.bias, y.detach().square().sum(-1)


def in_torch(a: ToyArguments) -> tuple[Tensor, Tensor]:
    return finished(a, torch.einsum("bthd,h->bthd", a.x, a.weight))


def in_triton(a: ToyArguments) -> tuple[Tensor, Tensor]:
    from tests.kernels.toy_kernels import scaled

    return finished(a, scaled(a.x, a.weight, TOY.tiles))


def in_reference(a: ToyArguments) -> tuple[Tensor, Tensor]:
    return finished(a, a.x * a.weight[:, None])


def backward_in_torch(a: ToyArguments, up: ToyUpstream) -> tuple[Tensor, Tensor, Tensor]:
    grad = up.grad * (1 if a.power is None else a.power)
    of_weight = torch.einsum("bthd,bthd->h", grad, a.x)
    return grad * a.weight[:, None], of_weight, up.grad.sum((0, 1, 2)) if a.bias is not None else up.grad.new_empty(0)


def fake_backward(a: ToyArguments, up: ToyUpstream) -> tuple[Tensor, ...]:
    of_bias = a.x.new_empty(0) if a.bias is None else torch.empty_like(a.bias)
    return a.x.new_empty(a.x.shape), a.weight.new_empty(a.weight.shape), of_bias


def step_in_torch(a: ToyToken) -> Tensor:
    return a.state.add_(a.x).clone()


forward = Op(
    TOY,
    "forward",
    ToyArguments,
    outputs=2,
    forms={"torch": in_torch, "triton": in_triton, "reference": in_reference},
    fake=lambda a: (a.x.new_empty(a.x.shape), a.x.new_empty(a.x.shape[:3])),
    flops=lambda a: math.prod(a.x),
)
backward = Op(
    TOY,
    "backward",
    ToyArguments,
    ToyUpstream,
    outputs=3,
    forms={"torch": backward_in_torch},
    fake=fake_backward,
    flops=lambda a, up: 2 * math.prod(a.x),
)
step = Op(
    TOY,
    "step",
    ToyToken,
    forms={"torch": step_in_torch},
    fake=lambda a: torch.empty_like(a.x),
    flops=lambda a: math.prod(a.x),
    mutates=["state"],
)


def differentiate(a: ToyArguments, kept: Any, grads: Any, wanted: set[str]) -> dict[str, Tensor]:
    assert kept[0].shape == a.x.shape[:3]
    return dict(zip(("x", "weight", "bias"), backward(a, ToyUpstream(kept[0], grads[0]))))


forward.differentiate(differentiate, keep=[1], fixed=[1])


@without_autocast
def toy_attention(
    x: Tensor, weight: Tensor, *, bias: Tensor | None = None, more: Any = (), power: int | None = None, backend="auto"
) -> Tensor:
    """The public function."""
    chosen = forward.enter(backend, x, others=(weight, bias))
    return forward(ToyArguments(x, weight, bias, list(more), power, chosen))[0]
