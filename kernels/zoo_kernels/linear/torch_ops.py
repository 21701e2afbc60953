"""Linear attention as custom ops: what torch.compile, autograd and FlopCounterMode see, whichever backend computes."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from zoo_kernels.backend import without_autocast
from zoo_kernels.checks import refuse_forward_mode
from zoo_kernels.flops import flop_formula
from zoo_kernels.linear.chunked import Plan, chunked_backward, chunked_forward, plan, precise

_INPUTS = "Tensor q, Tensor k, Tensor v, Tensor? log_decay, Tensor state, Tensor? documents"
_HOW = "float scale, str algorithm"


MULTIPROCESSORS = 132  # of an H100 or H200: the least programs of the Triton form, whatever batch x heads is
SCANNED = 64  # tokens of a segment of the scan
SHORTEST = 512  # tokens of a segment that are worth a pass of their own over keys and values


def _cut(q: Tensor, v: Tensor, algorithm: str) -> Plan:
    return plan(q.shape[0], q.shape[1], q.shape[2], max(q.shape[-1], v.shape[-1]), algorithm)


def _slots(q: Tensor, v: Tensor, algorithm: str) -> int:
    """States that the Triton form keeps: no fewer than segments, by a formula that compiled graphs take as it is."""
    if algorithm == "scan":
        return -(-q.shape[1] // SCANNED)
    further = 2 * MULTIPROCESSORS // _programs(q, v) if algorithm == "auto" else 0
    return torch.sym_min(further + 1, -(-q.shape[1] // SHORTEST)) if further else 0


def _kept(q: Tensor, v: Tensor, algorithm: str, backend: str) -> int:
    """States that the forward pass hands to the backward pass."""
    return _slots(q, v, algorithm) if backend == "triton" else _cut(q, v, algorithm).segments(q.shape[1])


def _programs(q: Tensor, v: Tensor) -> int:
    """Programs of a segment."""
    return max(q.shape[0] * q.shape[2] * max(v.shape[-1] // 64, 1), 1)


def _segment(q: Tensor, v: Tensor, algorithm: str) -> int:
    """Tokens of a segment of the Triton form: from shapes alone, so that nothing depends on the GPU that compiles.

    S segments make two programs for each multiprocessor, but no more than keep the traffic at 1.5 times the least
    forward and 2.0 times backward, states included (S (6 S - 2) states take what keys and values do), unless it takes
    more to make one.
    """
    length, width, value = q.shape[1], q.shape[-1], v.shape[-1]
    if algorithm != "auto":
        return SCANNED if algorithm == "scan" else max(length, 1)
    affordable = (width + value) * length * q.element_size() / (4 * max(width * value, 1))
    cheap = int((1 + math.sqrt(1 + 6 * affordable)) / 6)
    wanted = max(-(-MULTIPROCESSORS // _programs(q, v)), min(_slots(q, v, algorithm), cheap), 1)
    step = SHORTEST // 2
    return max(SHORTEST, -(-length // (step * wanted)) * step)


@torch.library.custom_op(
    "attention_zoo::linear_attention",
    mutates_args=(),
    schema=f"({_INPUTS}, {_HOW}, bool wide, str backend) -> (Tensor, Tensor, Tensor)",
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
    """Unnormalized output, final state, and the states before each segment, which the backward pass starts from.

    Args:
        wide: the output is in the precision of the state, not in that of q.
        backend: ``torch`` or ``triton``; the others as in :func:`zoo_kernels.linear_attention`.
    """
    refuse_forward_mode("linear attention")
    dtype = state.dtype if wide else q.dtype
    if not q.numel():
        output = q.new_empty(*q.shape[:3], v.shape[-1], dtype=dtype)
        return output, state.clone(), state.new_zeros(_kept(q, v, algorithm, backend), *state.shape)
    if backend == "triton":
        from zoo_kernels.linear.triton.host import triton_forward

        cutting = _segment(q, v, algorithm), _slots(q, v, algorithm)
        return triton_forward(q, k, v, log_decay, state, documents, scale, algorithm, *cutting, dtype)
    cut = _cut(q, v, algorithm)
    return chunked_forward(q, k, v, log_decay, state, documents, scale, cut, dtype)


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
    refuse_forward_mode("linear attention")
    output = q.new_empty(*q.shape[:3], v.shape[-1], dtype=state.dtype if wide else q.dtype)
    return output, torch.empty_like(state), state.new_empty(_kept(q, v, algorithm, backend), *state.shape)


@torch.library.custom_op(
    "attention_zoo::linear_attention_backward",
    mutates_args=(),
    schema=f"({_INPUTS}, Tensor starts, Tensor grad_output, Tensor grad_final, {_HOW}, str backend,"
    " bool decay_gradient) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
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
    backend: str,
    decay_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, the state and the log decay (empty unless ``decay_gradient``)."""
    refuse_forward_mode("the backward pass of linear attention")
    if not q.numel():
        decay = log_decay.new_zeros(log_decay.shape) if decay_gradient and log_decay is not None else q.new_empty(0)
        return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), grad_final.clone(), decay
    if backend == "triton":
        from zoo_kernels.linear.triton.host import triton_backward

        how = scale, algorithm, _segment(q, v, algorithm), decay_gradient
        arrays = q, k, v, log_decay, state, documents, starts, grad_output, grad_final
        grad_q, grad_k, grad_v, grad_state, grad_decay = triton_backward(*arrays, *how)
    else:
        cut = _cut(q, v, algorithm)
        grad_decay = precise(torch.empty(q.shape[:3], device=q.device)) if decay_gradient else None
        grad_q, grad_k, grad_v, grad_state = chunked_backward(
            (q, k, v), log_decay, documents, starts, scale, cut, grad_output, grad_final, grad_decay
        )
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
    backend: str,
    decay_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    refuse_forward_mode("the backward pass of linear attention")
    grads = [x.new_empty(x.shape) for x in (q, k, v, state)]
    decay = log_decay.new_empty(log_decay.shape) if decay_gradient and log_decay is not None else q.new_empty(0)
    return grads[0], grads[1], grads[2], grads[3], decay


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *arrays, ctx.scale, ctx.algorithm, _, ctx.backend = inputs
    ctx.save_for_backward(*arrays, output[2])
    ctx.mark_non_differentiable(output[2])


@without_autocast
def _differentiate(ctx: Any, grad_output: Tensor, grad_final: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    *arrays, starts = ctx.saved_tensors
    how = ctx.scale, ctx.algorithm, ctx.backend
    wanted = arrays[3] is not None and ctx.needs_input_grad[3]
    *grads, grad_state, grad_decay = linear_backward(*arrays, starts, grad_output, grad_final, *how, wanted)
    return *grads, grad_decay if wanted else None, grad_state, None, None, None, None, None


linear_forward.register_autograd(_differentiate, setup_context=_save)


@torch.library.custom_op(
    "attention_zoo::linear_attention_step",
    mutates_args={"state"},
    schema="(Tensor q, Tensor k, Tensor v, Tensor? log_decay, Tensor(a!) state, float scale, bool wide, str backend)"
    " -> Tensor",
)
def linear_step(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, state: Tensor, scale: float, wide: bool, backend: str
) -> Tensor:
    """Output ``(B, H, E)`` of one token; the state moves on in place."""
    refuse_forward_mode("a step of linear attention")
    dtype = state.dtype if wide else q.dtype
    if backend == "triton" and q.numel():
        from zoo_kernels.linear.triton.host import triton_step

        return triton_step(q, k, v, log_decay, state, scale, dtype)
    if log_decay is not None:
        state.mul_(log_decay.to(state.dtype).exp().expand(q.shape[:2])[..., None, None])
    state.addcmul_(k.to(state.dtype)[..., :, None], v.to(state.dtype)[..., None, :])
    return ((q.to(state.dtype)[..., None, :] @ state)[..., 0, :] * scale).to(dtype)


@linear_step.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, state: Tensor, scale: float, wide: bool, backend: str
) -> Tensor:
    refuse_forward_mode("a step of linear attention")
    return q.new_empty(v.shape, dtype=state.dtype if wide else q.dtype)


def _pairs(q: tuple[int, ...], v: tuple[int, ...], algorithm: str) -> int:
    """Pairs of query and key of the left products of all heads."""
    cut = plan(q[0], q[1], q[2], max(q[-1], v[-1]), algorithm)
    return q[0] * q[2] * sum((stop - start) * chunk for start, stop, chunk in cut.spans(q[1]))


@flop_formula(torch.ops.attention_zoo.linear_attention)
def _forward_flops(q: Any, k: Any, v: Any, *rest: Any, out_shape: Any = None) -> int:
    """Two FLOPs per multiplication and addition of the matrix products of the chunked form."""
    width, value, tokens = q[-1], v[-1], q[0] * q[1] * q[2]
    return 2 * _pairs(q, v, rest[4]) * (width + value) + 4 * tokens * width * value


@flop_formula(torch.ops.attention_zoo.linear_attention_step)
def _step_flops(q: Any, k: Any, v: Any, *rest: Any, out_shape: Any = None) -> int:
    """The product with the state; its update is elementwise and not counted, as torch counts none."""
    return 2 * q[0] * q[1] * q[2] * v[-1]


@flop_formula(torch.ops.attention_zoo.linear_attention_backward)
def _backward_flops(q: Any, k: Any, v: Any, *rest: Any, out_shape: Any = None) -> int:
    width, value, tokens = q[-1], v[-1], q[0] * q[1] * q[2]
    return _pairs(q, v, rest[7]) * (6 * width + 4 * value) + 10 * tokens * width * value
