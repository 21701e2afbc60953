"""Custom ops of linear attention: forms by backend, derivatives, FLOPs, and the registration of the family."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from zoo_kernels.chunks import Chunking, plan, precise
from zoo_kernels.delta.arguments import DeltaArguments, DeltaUpstream
from zoo_kernels.delta.chunked import cut_of, delta_forward
from zoo_kernels.delta.flops import backward_flops, forward_flops
from zoo_kernels.delta.gradients import delta_backward
from zoo_kernels.delta.reference import reference_delta_attention
from zoo_kernels.family import Family, Op, register
from zoo_kernels.linear.arguments import LinearArguments, LinearToken, LinearUpstream
from zoo_kernels.linear.chunked import chunked_backward, chunked_forward
from zoo_kernels.linear.reference import reference_linear_attention
from zoo_kernels.linear.triton.configs import TABLE

MULTIPROCESSORS = 132  # of an H100 or H200: the least programs of the Triton form, whatever batch x heads is
SCANNED = 64  # tokens of a segment of the scan
SHORTEST = 512  # tokens of a segment that are worth a pass of their own over keys and values


LINEAR = register(
    Family(
        "linear",
        "linear attention",
        widths={torch.float32: 64, torch.float16: 256, torch.bfloat16: 256},
        tiles=TABLE,
        calls="zoo_kernels.linear.calls",
        cases="zoo_kernels.linear.bench_cases",
    )
)


def _of_channels(x: Any) -> DeltaArguments | None:
    """The arguments of delta attention without erase, if each channel has its decay; else None."""
    shape = getattr(x.log_decay, "shape", x.log_decay)  # counters of FLOPs have shapes in place of tensors
    if shape is None or len(shape) < 4:
        return None
    return DeltaArguments(x.q, x.k, x.v, x.log_decay, None, None, None, x.state, x.documents, x.scale, x.backend)


def _cut(q: Tensor, v: Tensor, algorithm: str) -> Chunking:
    return plan(q.shape[0], q.shape[1], q.shape[2], max(q.shape[-1], v.shape[-1]), algorithm)


def _slots(q: Tensor, v: Tensor, algorithm: str) -> int:
    """States that the Triton form keeps: no fewer than segments, by a formula that compiled graphs take as it is."""
    if algorithm == "scan":
        return -(-q.shape[1] // SCANNED)
    further = 2 * MULTIPROCESSORS // _programs(q, v) if algorithm == "auto" else 0
    return torch.sym_min(further + 1, -(-q.shape[1] // SHORTEST)) if further else 0


def _kept(x: LinearArguments) -> int:
    """States that the forward pass hands to the backward pass."""
    if x.backend == "triton":
        return _slots(x.q, x.v, x.algorithm) if _of_channels(x) is None else 0
    cut = _cut(x.q, x.v, x.algorithm) if _of_channels(x) is None else cut_of(x.q.shape, x.v.shape)
    return cut.segments(x.q.shape[1])


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


def _torch_forward(x: LinearArguments) -> tuple[Tensor, Tensor, Tensor]:
    if (of_channels := _of_channels(x)) is not None:
        return delta_forward(of_channels, x.dtype)
    cut = _cut(x.q, x.v, x.algorithm)
    return chunked_forward(x.q, x.k, x.v, x.log_decay, x.state, x.documents, x.scale, cut, x.dtype)


def _triton_forward(x: LinearArguments) -> tuple[Tensor, Tensor, Tensor]:
    from zoo_kernels.linear.triton.channel_host import channel_forward
    from zoo_kernels.linear.triton.host import triton_forward

    if _of_channels(x) is not None:
        output, final = channel_forward(x, _segment(x.q, x.v, "auto"))
        return output, final, x.state.new_empty(0, *x.state.shape)
    q, k, v, log_decay, state, documents, scale, algorithm, *_ = x
    cutting = _segment(q, v, algorithm), _slots(q, v, algorithm)
    return triton_forward(q, k, v, log_decay, state, documents, scale, algorithm, *cutting, x.dtype)


def _reference(x: LinearArguments) -> tuple[Tensor, Tensor]:
    if (of_channels := _of_channels(x)) is not None:
        return reference_delta_attention(of_channels)
    q, k, v = (array.to(x.state.dtype) for array in (x.q, x.k, x.v))
    output, state = reference_linear_attention(q, k, v, x.log_decay, x.state, x.documents)
    return output if x.scale == 1.0 else output * x.scale, state


def _fake(x: LinearArguments) -> tuple[Tensor, Tensor, Tensor]:
    output = x.q.new_empty(*x.q.shape[:3], x.v.shape[-1], dtype=x.dtype)
    return output, torch.empty_like(x.state), x.state.new_empty(_kept(x), *x.state.shape)


def _pairs(x: Any) -> int:
    """Pairs of query and key of the left products of all heads."""
    batch, length, heads, width = x.q
    cut = plan(batch, length, heads, max(width, x.v[-1]), x.algorithm)
    return batch * heads * sum((stop - start) * chunk for start, stop, chunk in cut.spans(length))


def _states(x: Any) -> int:
    """Multiplications of all queries with a state."""
    return math.prod(x.q) * x.v[-1]


def _flops(x: Any) -> int:
    """Two FLOPs per multiplication and addition of the matrix products of the chunked form."""
    if (of_channels := _of_channels(x)) is not None:
        return forward_flops(of_channels)
    return 2 * _pairs(x) * (x.q[-1] + x.v[-1]) + 4 * _states(x)


def _torch_backward(x: LinearArguments, up: LinearUpstream) -> tuple[Tensor, ...]:
    if (of_channels := _of_channels(x)) is not None:
        found = delta_backward(of_channels, DeltaUpstream(*up))
        return *(found[name] for name in ("q", "k", "v", "state")), _of_decays(x, found.get("log_decay"))
    cut = _cut(x.q, x.v, x.algorithm)
    grad_decay = precise(torch.empty(x.q.shape[:3], device=x.q.device)) if up.decay_gradient else None
    grads = chunked_backward(
        (x.q, x.k, x.v), x.log_decay, x.documents, up.starts, x.scale, cut, up.grad_output, up.grad_final, grad_decay
    )
    return *grads, _of_decays(x, grad_decay)


def _triton_backward(x: LinearArguments, up: LinearUpstream) -> tuple[Tensor, ...]:
    from zoo_kernels.linear.triton.channel_host import channel_backward
    from zoo_kernels.linear.triton.host import triton_backward

    if _of_channels(x) is not None:
        *grads, grad_decay = channel_backward(x, up, _segment(x.q, x.v, "auto"))
        return *grads, _of_decays(x, grad_decay)
    arrays = x.q, x.k, x.v, x.log_decay, x.state, x.documents, up.starts, up.grad_output, up.grad_final
    how = x.scale, x.algorithm, _segment(x.q, x.v, x.algorithm), up.decay_gradient
    *grads, grad_decay = triton_backward(*arrays, *how)
    return *grads, _of_decays(x, grad_decay)


def _of_decays(x: LinearArguments, of_tokens: Tensor | None) -> Tensor:
    """Gradient of the log decay from that of each token's ``(B, T, H)`` or channel's; empty where it has none."""
    if of_tokens is None or x.log_decay is None:
        return x.q.new_empty(0)
    return (of_tokens if x.log_decay.dim() > 1 else of_tokens.sum((0, 1))).to(x.log_decay.dtype)


def _fake_backward(x: LinearArguments, up: LinearUpstream) -> tuple[Tensor, ...]:
    decay = x.log_decay if up.decay_gradient else None
    grads = [array.new_empty(array.shape) for array in (x.q, x.k, x.v, x.state)]
    return *grads, x.q.new_empty(0) if decay is None else decay.new_empty(decay.shape)


def _empty_backward(x: LinearArguments, up: LinearUpstream) -> tuple[Tensor, ...]:
    *of_rows, _, decay = _fake_backward(x, up)
    return *of_rows, up.grad_final.clone(), decay.zero_()


def _backward_flops(x: Any, up: Any) -> int:
    if (of_channels := _of_channels(x)) is not None:
        return backward_flops(of_channels, up)
    return _pairs(x) * (6 * x.q[-1] + 4 * x.v[-1]) + 10 * _states(x)


linear_forward = Op(
    LINEAR,
    "forward",
    LinearArguments,
    outputs=3,  # unnormalized output, final state, states before each segment, which the backward pass starts from
    forms={"torch": _torch_forward, "triton": _triton_forward, "reference": _reference},
    fake=_fake,
    empty=lambda x: (_fake(x)[0], x.state.clone(), _fake(x)[2].zero_()),
    flops=_flops,
)
linear_backward = Op(
    LINEAR,
    "backward",
    LinearArguments,
    LinearUpstream,
    outputs=5,  # gradients of q, k, v, the state and the log decay (empty unless ``decay_gradient``)
    forms={"torch": _torch_backward, "triton": _triton_backward},
    fake=_fake_backward,
    empty=_empty_backward,
    flops=_backward_flops,
)


def _differentiate(
    x: LinearArguments, kept: list[Tensor], grads: tuple[Tensor | None, ...], wanted: set[str]
) -> dict[str, Tensor]:
    output, final, _ = grads
    output = x.q.new_zeros(*x.q.shape[:3], x.v.shape[-1], dtype=x.dtype) if output is None else output
    final = torch.zeros_like(x.state) if final is None else final
    found = linear_backward(x, LinearUpstream(kept[0], output, final, "log_decay" in wanted))
    return dict(zip(("q", "k", "v", "state", "log_decay"), found))


linear_forward.differentiate(_differentiate, keep=[2], fixed=[2])


def _torch_step(x: LinearToken) -> Tensor:
    state = x.state
    if x.log_decay is not None:
        kept = x.log_decay.to(state.dtype).exp()
        state.mul_(kept[..., None] if kept.dim() == 3 else kept.expand(x.q.shape[:2])[..., None, None])
    state.addcmul_(x.k.to(state.dtype)[..., :, None], x.v.to(state.dtype)[..., None, :])
    return ((x.q.to(state.dtype)[..., None, :] @ state)[..., 0, :] * x.scale).to(x.dtype)


def _triton_step(x: LinearToken) -> Tensor:
    from zoo_kernels.linear.triton.host import triton_step

    return triton_step(x.q, x.k, x.v, x.log_decay, x.state, x.scale, x.dtype)


linear_step = Op(
    LINEAR,
    "step",
    LinearToken,
    forms={"torch": _torch_step, "triton": _triton_step},
    fake=lambda x: x.q.new_empty(x.v.shape, dtype=x.dtype),
    flops=lambda x: 2 * math.prod(x.q) * x.v[-1],  # the update is elementwise and not counted, as torch counts none
    mutates=["state"],
)
