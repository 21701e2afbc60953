"""Custom ops of softmax attention: forms by backend, derivatives, FLOPs, and the registration of the family."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zoo_kernels.family import Family, Op, register
from zoo_kernels.softmax.arguments import SoftmaxArguments, SoftmaxToken, SoftmaxUpstream
from zoo_kernels.softmax.cpu import fused
from zoo_kernels.softmax.cpu.forms import choose_form
from zoo_kernels.softmax.reference import reference_softmax_attention
from zoo_kernels.softmax.step import step
from zoo_kernels.softmax.triton.configs import TABLE

SOFTMAX = register(
    Family(
        "softmax",
        "softmax attention",
        widths={torch.float32: 64, torch.float16: 256, torch.bfloat16: 256},
        tiles=TABLE,
        calls="zoo_kernels.softmax.calls",
        cases="zoo_kernels.softmax.bench_cases",
    )
)


def _torch_forward(x: SoftmaxArguments) -> tuple[Tensor, Tensor]:
    return choose_form(x).forward()


def _triton_forward(x: SoftmaxArguments) -> tuple[Tensor, Tensor]:
    from zoo_kernels.softmax.triton.host import triton_forward

    return triton_forward(x.q, x.k, x.v, x.rule, x.scale, x.lists, x.block_bias)


def _reference(x: SoftmaxArguments) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(x.q.dtype, torch.float32)
    q, k, v = (array.to(dtype) for array in (x.q, x.k, x.v))
    return reference_softmax_attention(q, k, v, x.rule, x.scale, x.lists, x.block_bias)


def _fake(x: SoftmaxArguments | SoftmaxToken) -> tuple[Tensor, Tensor]:
    lse = x.q.new_empty(x.q.shape[:-1], dtype=torch.promote_types(x.q.dtype, torch.float32))
    return x.q.new_empty(*x.q.shape[:-1], x[2].shape[-1]), lse


def _pairs(x: Any) -> int:
    """Pairs of query and key of all heads: those that the rule shows, or all of the listed blocks."""
    (batch, queries, heads, _), keys = x.q, x.k[1]
    if x.layout:
        batches, lists, _ = x.layout[1]
        return x.layout[2][0] * x.block**2 * (batch // max(batches, 1)) * (heads // max(lists, 1))
    reach = keys if x.window is None else min(x.window + x.sink_tokens, keys)

    def before(length: int) -> int:
        short = min(length, reach)
        return short * (short + 1) // 2 + (length - short) * reach

    return batch * heads * (before(keys) - before(keys - queries))


def _flops(x: Any) -> int:
    """Two FLOPs per multiplication and addition of the two matrix products."""
    return 2 * _pairs(x) * (x.q[-1] + x.v[-1])


def _torch_backward(x: SoftmaxArguments, up: SoftmaxUpstream) -> tuple[Tensor, ...]:
    output, grad_lse, place = up.output, up.grad_lse, None
    if up.bias_gradient and x.block_bias is not None:
        place = torch.zeros(x.block_bias.shape, dtype=up.lse.dtype, device=x.q.device)
    elif grad_lse is not None and fused.fuses(x.q, x.v):
        output, grad_lse = fused.absorb(output, up.grad_output, grad_lse.masked_fill(up.lse == -torch.inf, 0))
    form = choose_form(x, lse_gradient=grad_lse is not None)
    grads = form.backward((x.q, x.k, x.v, output, up.lse), up.grad_output, grad_lse, place)
    return *grads, _of_bias(x, place)


def _triton_backward(x: SoftmaxArguments, up: SoftmaxUpstream) -> tuple[Tensor, ...]:
    from zoo_kernels.softmax.triton.host import triton_backward

    grad_lse = torch.zeros_like(up.lse) if up.grad_lse is None else up.grad_lse
    arrays = x.q, x.k, x.v, up.output, up.lse, up.grad_output, grad_lse
    *grads, bias = triton_backward(*arrays, x.rule, x.scale, x.lists, x.block_bias)
    return *grads, _of_bias(x, bias if up.bias_gradient else None)


def _of_bias(x: SoftmaxArguments, found: Tensor | None) -> Tensor:
    """The gradient of the bias in its type; empty where it has none."""
    return x.q.new_empty(0) if found is None or x.block_bias is None else found.to(x.block_bias.dtype)


def _fake_backward(x: SoftmaxArguments, up: SoftmaxUpstream) -> tuple[Tensor, ...]:
    bias = x.block_bias if up.bias_gradient else None
    grads = [array.new_empty(array.shape) for array in (x.q, x.k, x.v)]
    return *grads, x.q.new_empty(0) if bias is None else bias.new_empty(bias.shape)


def _differentiate(
    x: SoftmaxArguments, kept: list[Tensor], grads: tuple[Tensor | None, ...], wanted: set[str]
) -> dict[str, Tensor]:
    output, lse = kept
    grad_output = torch.zeros_like(output) if grads[0] is None else grads[0]
    found = softmax_backward(x, SoftmaxUpstream(output, lse, grad_output, grads[1], "block_bias" in wanted))
    return dict(zip(("q", "k", "v", "block_bias"), found))


def _torch_step(x: SoftmaxToken) -> tuple[Tensor, Tensor]:
    return step(*x[:-1])


def _triton_step(x: SoftmaxToken) -> tuple[Tensor, Tensor]:
    from zoo_kernels.softmax.triton.host import triton_step

    q, k_cache, v_cache, lengths, window, sink_tokens, ring, scale, _ = x
    return triton_step(q, k_cache, v_cache, lengths, window=window, sink_tokens=sink_tokens, ring=ring, scale=scale)


def _step_flops(x: Any) -> int:
    """Of a full cache."""
    keys = x.k_cache[1] if x.window is None else min(x.window + x.sink_tokens, x.k_cache[1])
    return 2 * x.q[0] * x.q[1] * keys * (x.q[-1] + x.v_cache[-1])


softmax_forward = Op(
    SOFTMAX,
    "forward",
    SoftmaxArguments,
    outputs=2,  # output ``(B, Tq, H, E)`` in the dtype of q and log-sum-exp ``(B, Tq, H)`` in fp32 or better
    forms={"torch": _torch_forward, "triton": _triton_forward, "reference": _reference},
    fake=_fake,
    flops=_flops,
)
softmax_backward = Op(
    SOFTMAX,
    "backward",
    SoftmaxArguments,
    SoftmaxUpstream,
    outputs=4,  # gradients of q, k, v and the bias (empty unless ``bias_gradient``)
    forms={"torch": _torch_backward, "triton": _triton_backward},
    fake=_fake_backward,
    flops=lambda x, up: 2 * _pairs(x) * (3 * x.q[-1] + 2 * x.v[-1]),
)
softmax_step = Op(
    SOFTMAX,
    "step",
    SoftmaxToken,
    outputs=2,
    forms={"torch": _torch_step, "triton": _triton_step},
    fake=_fake,
    flops=_step_flops,
)
softmax_forward.differentiate(_differentiate, keep=[0, 1])
