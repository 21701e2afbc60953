"""Linear attention as custom ops: what torch.compile, autograd and FlopCounterMode see, whichever backend computes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kernels.backend import without_autocast
from kernels.flops import flop_formula
from kernels.linear.chunked import Plan, chunked_backward, chunked_forward, plan, precise

_INPUTS = "Tensor q, Tensor k, Tensor v, Tensor? log_decay, Tensor state, Tensor? documents"
_HOW = "float scale, str algorithm, bool wide, str backend"


def _cut(q: Tensor, v: Tensor, algorithm: str) -> Plan:
    return plan(q.shape[0], q.shape[1], q.shape[2], max(q.shape[-1], v.shape[-1]), algorithm)


@torch.library.custom_op(
    "attention_zoo::linear_attention",
    mutates_args=(),
    schema=f"({_INPUTS}, {_HOW}) -> (Tensor, Tensor, Tensor)",
)
def linear_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    state: Tensor,
    documents: Tensor | None,
    scale: float,
    algorithm: str,
    wide: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Unnormalised output, final state, and the states before each segment, which the backward pass starts from.

    Args:
        wide: the output is in the precision of the state, not in that of q.
        backend: ``torch`` or ``triton``; the others as in :func:`kernels.linear_attention`.
    """
    dtype = state.dtype if wide else q.dtype
    cut = _cut(q, v, algorithm)
    output, final, starts = chunked_forward(q, k, v, log_decay, state, documents, scale, cut, dtype)
    return output, final.clone() if final is state else final, starts


@linear_forward.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    state: Tensor,
    documents: Tensor | None,
    scale: float,
    algorithm: str,
    wide: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    output = q.new_empty(*q.shape[:3], v.shape[-1], dtype=state.dtype if wide else q.dtype)
    segments = _cut(q, v, algorithm).segments(q.shape[1])
    return output, torch.empty_like(state), state.new_empty(segments, *state.shape)


@torch.library.custom_op(
    "attention_zoo::linear_attention_backward",
    mutates_args=(),
    schema=f"({_INPUTS}, Tensor starts, Tensor grad_output, Tensor grad_final, {_HOW}, bool decay_gradient)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def linear_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    state: Tensor,
    documents: Tensor | None,
    starts: Tensor,
    grad_output: Tensor,
    grad_final: Tensor,
    scale: float,
    algorithm: str,
    wide: bool,
    backend: str,
    decay_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, the state and the log decay (empty unless ``decay_gradient``)."""
    cut = _cut(q, v, algorithm)
    grad_decay = precise(torch.empty(q.shape[:3], device=q.device)) if decay_gradient else None
    grad_q, grad_k, grad_v, grad_state = chunked_backward(
        (q, k, v), log_decay, documents, starts, scale, cut, grad_output, grad_final, grad_decay
    )
    if grad_state is grad_final:
        grad_state = grad_final.clone()
    if grad_decay is None or log_decay is None:
        return grad_q, grad_k, grad_v, grad_state, q.new_empty(0)
    of_heads = grad_decay if log_decay.dim() == 3 else grad_decay.sum((0, 1))
    return grad_q, grad_k, grad_v, grad_state, of_heads.to(log_decay.dtype)


@linear_backward.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    state: Tensor,
    documents: Tensor | None,
    starts: Tensor,
    grad_output: Tensor,
    grad_final: Tensor,
    scale: float,
    algorithm: str,
    wide: bool,
    backend: str,
    decay_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    grads = [x.new_empty(x.shape) for x in (q, k, v, state)]
    decay = log_decay.new_empty(log_decay.shape) if decay_gradient and log_decay is not None else q.new_empty(0)
    return grads[0], grads[1], grads[2], grads[3], decay


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *arrays, ctx.scale, ctx.algorithm, ctx.wide, ctx.backend = inputs
    ctx.save_for_backward(*arrays, output[2])
    ctx.mark_non_differentiable(output[2])


@without_autocast
def _differentiate(ctx: Any, grad_output: Tensor, grad_final: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    *arrays, starts = ctx.saved_tensors
    how = ctx.scale, ctx.algorithm, ctx.wide, ctx.backend
    wanted = arrays[3] is not None and ctx.needs_input_grad[3]
    *grads, grad_state, grad_decay = linear_backward(*arrays, starts, grad_output, grad_final, *how, wanted)
    return *grads, grad_decay if wanted else None, grad_state, None, None, None, None, None


linear_forward.register_autograd(_differentiate, setup_context=_save)


def _pairs(q: tuple[int, ...], v: tuple[int, ...], algorithm: str) -> int:
    """Pairs of query and key of the left products of all heads."""
    cut = plan(q[0], q[1], q[2], max(q[-1], v[-1]), algorithm)
    return q[0] * q[2] * sum((stop - start) * chunk for start, stop, chunk in cut.spans(q[1]))


@flop_formula(torch.ops.attention_zoo.linear_attention)
def _forward_flops(q: Any, k: Any, v: Any, *rest: Any, out_shape: Any = None) -> int:
    """Two FLOPs per multiplication and addition of the matrix products of the chunked form."""
    width, value, tokens = q[-1], v[-1], q[0] * q[1] * q[2]
    return 2 * _pairs(q, v, rest[4]) * (width + value) + 4 * tokens * width * value


@flop_formula(torch.ops.attention_zoo.linear_attention_backward)
def _backward_flops(q: Any, k: Any, v: Any, *rest: Any, out_shape: Any = None) -> int:
    width, value, tokens = q[-1], v[-1], q[0] * q[1] * q[2]
    return _pairs(q, v, rest[7]) * (6 * width + 4 * value) + 10 * tokens * width * value
