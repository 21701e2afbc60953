"""Delta attention as custom ops: forms by backend, derivatives, FLOPs; and its entry among the families."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from zoo_kernels.chunks import FORGOTTEN
from zoo_kernels.delta.arguments import DeltaArguments, DeltaToken, DeltaUpstream
from zoo_kernels.delta.chunked import cut_of, delta_forward
from zoo_kernels.delta.flops import backward_flops, forward_flops
from zoo_kernels.delta.gradients import delta_backward
from zoo_kernels.delta.reference import of_value_heads, reference_delta_attention
from zoo_kernels.delta.triton.configs import TABLE
from zoo_kernels.family import Family, Op, register

GRADIENTS = ("q", "k", "v", "log_decay", "beta", "read", "erase", "state")

DELTA = register(
    Family(
        "delta",
        "delta attention",
        widths={torch.float32: 64, torch.float16: 256, torch.bfloat16: 256},
        tiles=TABLE,
        calls="zoo_kernels.delta.calls",
        cases="zoo_kernels.delta.bench_cases",
    )
)


def _fake(x: DeltaArguments) -> tuple[Tensor, Tensor, Tensor]:
    kept = 0 if x.backend == "triton" else cut_of(x.q.shape, x.v.shape).segments(x.q.shape[1])
    return x.v.new_empty(x.v.shape), torch.empty_like(x.state), x.state.new_empty(kept, *x.state.shape)


def _torch_backward(x: DeltaArguments, up: DeltaUpstream) -> tuple[Tensor, ...]:
    return _in_order(x, delta_backward(x, up))


def _in_order(x: DeltaArguments, found: dict[str, Tensor]) -> tuple[Tensor, ...]:
    if "log_decay" in found and x.log_decay is not None:
        found["log_decay"] = of_decays(x.log_decay, found["log_decay"])
    return tuple(found.get(name, x.q.new_empty(0)) for name in GRADIENTS)


def _triton_forward(x: DeltaArguments) -> tuple[Tensor, Tensor, Tensor]:
    from zoo_kernels.delta.triton.host import triton_forward

    return *triton_forward(x), x.state.new_empty(0, *x.state.shape)  # the backward pass starts from the first state


def _triton_backward(x: DeltaArguments, up: DeltaUpstream) -> tuple[Tensor, ...]:
    from zoo_kernels.delta.triton.backward import triton_backward

    return _in_order(x, triton_backward(x, up))


def _triton_step(x: DeltaToken) -> Tensor:
    from zoo_kernels.delta.triton.host import triton_step

    return triton_step(x)


def of_decays(log_decay: Tensor, of_tokens: Tensor) -> Tensor:
    """Gradient of the log decay from that of each token's ``(B, T, Hv, 1 or D)``: none where it counts as another."""
    if log_decay.dim() == 4:
        return of_tokens.to(log_decay.dtype)
    found = of_tokens[..., 0] if log_decay.dim() == 3 else of_tokens.sum((0, 1, 3))
    return (found * ((log_decay <= 0) & (log_decay >= FORGOTTEN))).to(log_decay.dtype)


def _fake_backward(x: DeltaArguments, up: DeltaUpstream) -> tuple[Tensor, ...]:
    given = x._asdict() | {"log_decay": x.log_decay if up.decay_gradient else None}
    return tuple(x.q.new_empty(0) if given[n] is None else given[n].new_empty(given[n].shape) for n in GRADIENTS)


def _empty_backward(x: DeltaArguments, up: DeltaUpstream) -> tuple[Tensor, ...]:
    *others, _ = (found.zero_() for found in _fake_backward(x, up))
    return *others, up.grad_final.clone()


delta_forward_op = Op(
    DELTA,
    "forward",
    DeltaArguments,
    outputs=3,  # output, final state, states before each segment, which the backward pass starts from
    forms={
        "torch": lambda x: delta_forward(x, x.q.dtype),
        "triton": _triton_forward,
        "reference": reference_delta_attention,
    },
    fake=_fake,
    empty=lambda x: (_fake(x)[0], x.state.clone(), _fake(x)[2].zero_()),
    flops=forward_flops,
)
delta_backward_op = Op(
    DELTA,
    "backward",
    DeltaArguments,
    DeltaUpstream,
    outputs=len(GRADIENTS),  # empty ones of what was not given, and of the log decay unless ``decay_gradient``
    forms={"torch": _torch_backward, "triton": _triton_backward},
    fake=_fake_backward,
    empty=_empty_backward,
    flops=backward_flops,
)


def _differentiate(
    x: DeltaArguments, kept: list[Tensor], grads: tuple[Tensor | None, ...], wanted: set[str]
) -> dict[str, Tensor]:
    output, final, _ = grads
    output = torch.zeros_like(x.v) if output is None else output
    final = torch.zeros_like(x.state) if final is None else final
    found = delta_backward_op(x, DeltaUpstream(kept[0], output, final, "log_decay" in wanted))
    return dict(zip(GRADIENTS, found))


delta_forward_op.differentiate(_differentiate, keep=[2], fixed=[2])


def _torch_step(x: DeltaToken) -> Tensor:
    state, heads = x.state, x.v.shape[1]
    if x.log_decay is not None:
        kept = x.log_decay.to(state.dtype).clamp(FORGOTTEN, 0).exp()
        state.mul_(kept[..., None] if kept.dim() == 3 else kept.expand(x.v.shape[:2])[..., None, None])
    q, k, v = (of_value_heads(array[:, None], heads)[:, 0].to(state.dtype) for array in (x.q, x.k, x.v))
    if x.beta is not None:
        v = (v - (k[..., None, :] @ state)[..., 0, :]) * x.beta.to(state.dtype)[..., None]
    elif x.read is not None and x.erase is not None:
        read, erase = (of_value_heads(array[:, None], heads)[:, 0].to(state.dtype) for array in (x.read, x.erase))
        state.addcmul_(erase[..., None], read[..., None, :] @ state, value=-1)
    state.addcmul_(k[..., None], v[..., None, :])
    return ((q[..., None, :] @ state)[..., 0, :] * x.scale).to(x.q.dtype)


def _step_flops(x: Any) -> int:
    """What is read by query and by ``k`` or ``read``; updates are elementwise and not counted, as torch counts none."""
    readers = 1 if x.beta is None and x.read is None else 2
    return 2 * readers * math.prod(x.state)


delta_step_op = Op(
    DELTA,
    "step",
    DeltaToken,
    forms={"torch": _torch_step, "triton": _triton_step},
    fake=lambda x: x.q.new_empty(x.v.shape),
    flops=_step_flops,
    mutates=["state"],
)
