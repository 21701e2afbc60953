"""Public functions of linear attention: they check their arguments and dispatch to a backend."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo_kernels.backend import without_autocast
from zoo_kernels.checks import (
    check_arrays,
    check_decay,
    check_devices,
    check_integers,
    check_number,
    check_shape,
    unfit_state,
)
from zoo_kernels.chunks import FORGOTTEN
from zoo_kernels.launch import whole_vectors
from zoo_kernels.linear.arguments import LinearArguments, LinearToken
from zoo_kernels.linear.torch_ops import linear_forward, linear_step

ALGORITHMS = ("auto", "parallel", "chunk", "scan")
ONES_WIDE = 8  # columns: 16 bytes in 16 bits


@dataclass
class NormalizedState:
    """State of normalized linear attention.

    Attributes:
        s: the state ``(B, H, D, E)``, fp32.
        z: the normalizer ``(B, H, D)``, fp32.
    """

    s: Tensor
    z: Tensor


State = Tensor | NormalizedState


@without_autocast
def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None = None,
    *,
    scale: float = 1.0,
    normalize: bool = False,
    eps: float = 1e-6,
    initial_state: State | None = None,
    return_state: bool = False,
    documents: Tensor | None = None,
    algorithm: str = "auto",
    backend: str = "auto",
    wide: bool = False,
) -> tuple[Tensor, State | None]:
    """Causal linear attention: ``S_t = exp(log_decay_t) S_{t-1} + k_t v_t^T``, ``o_t = scale * q_t S_t``.

    Args:
        q: queries ``(B, T, H, D)``, of any strides and one floating dtype with k and v; sums are accumulated in fp32 or
            better.
        k: keys ``(B, T, H, D)``.
        v: values ``(B, T, H, E)``.
        log_decay: None (no decay), ``(H,)``, ``(B, T, H)`` or ``(B, T, H, D)``, all <= 0. Positive ones are refused on
            the CPU; where that would wait for a device or cut a graph they count as 0, and have no gradient.
        scale: any finite number.
        normalize: divide by ``q_t . z_t`` with ``z_t = exp(log_decay_t) z_{t-1} + k_t``.
        eps: lower bound of the absolute value of ``q_t . z_t`` if ``normalize``.
        initial_state: state before token 0, ``(B, H, D, E)``, or a NormalizedState if ``normalize``. It belongs to the
            document of token 0. None: zeros.
        return_state: also return the state after the last token.
        documents: ``(B, T)`` integer ids of packed documents, each contiguous; nothing crosses a boundary but NaN and
            inf, which may reach other documents of their row and never another row.
        algorithm: ``parallel`` (one masked left product, O(T^2); Lightning Attention-1), ``chunk`` (left product inside
            a chunk, running state between chunks; Lightning Attention-2), ``scan`` (chunk states combined in log
            depth) or ``auto``. With a decay per channel all are the form in chunks.
        backend: ``auto``, ``triton``, ``torch`` or ``reference``.
        wide: return the output in fp32 or better, for sums that exceed the range of fp16 (65504) and that a norm
            follows.

    Returns:
        Output ``(B, T, H, E)`` in the dtype of q, or of the state if ``wide``, and the final state if ``return_state``,
        else None.

    Raises:
        ValueError: on shapes, types, numbers, an algorithm or a backend that do not fit.
        NotImplementedError: in forward mode and inside torch.func's transforms.
    """
    _check(q, k, v, log_decay, documents, algorithm)
    check_number("scale", scale)
    check_number("eps", eps, above=0)
    given = _initial(initial_state, q, k, v, normalize)
    others = log_decay, *_tensors(given)
    chosen = linear_forward.enter(backend, q, k, v, others=others)
    dtype = torch.promote_types(q.dtype, torch.float32) if wide else q.dtype
    log_decay = _bounded_decay(log_decay)

    def sums(v: Tensor, state: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        how = scale, algorithm, normalize or wide, chosen
        call = LinearArguments(q, k, v, log_decay, state, documents, *how)
        return _of_whole_vectors(call) if chosen == "triton" else linear_forward(call)[:2]

    if isinstance(given, NormalizedState):
        ones = ONES_WIDE if chosen == "triton" else 1
        output, state = _normalized(sums, v, given, ones, eps)
        output = output if scale == 1.0 else output * scale
        return output.to(dtype), state if return_state else None
    output, last = sums(v, given, scale)
    return output.to(dtype), last if return_state else None


def _of_whole_vectors(x: LinearArguments) -> tuple[Tensor, Tensor]:
    """The Triton form, whose rows are made whole vectors where they are not."""
    width, value = x.q.shape[-1], x.v.shape[-1]
    q, k, v = (whole_vectors(array) for array in (x.q, x.k, x.v))
    further = q.shape[-1] - width, v.shape[-1] - value
    if not any(further):
        return linear_forward(x)[:2]
    state, log_decay = F.pad(x.state, (0, further[1], 0, further[0])), x.log_decay
    if log_decay is not None and log_decay.dim() == 4:
        log_decay = F.pad(log_decay, (0, further[0]))
    output, last, _ = linear_forward(x._replace(q=q, k=k, v=v, log_decay=log_decay, state=state))
    return output[..., :value], last[..., :width, :value].contiguous()


@without_autocast
@torch.no_grad()
def linear_attention_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    state: State,
    *,
    scale: float = 1.0,
    normalize: bool = False,
    eps: float = 1e-6,
    backend: str = "auto",
    wide: bool = False,
) -> Tensor:
    """One token of :func:`linear_attention`, updating ``state`` in place.

    It has no gradient and can be captured in a CUDA graph.

    Args:
        q: query ``(B, H, D)``.
        k: key ``(B, H, D)``.
        v: value ``(B, H, E)``.
        log_decay: None, ``(H,)``, ``(B, H)`` or ``(B, H, D)``, all <= 0.
        state: ``(B, H, D, E)`` fp32, or a NormalizedState if ``normalize``; updated in place.
        scale: any finite number.
        normalize: divide by ``q . z``, as in :func:`linear_attention`.
        eps: lower bound of the absolute value of ``q . z`` if ``normalize``.
        backend: ``auto``, ``triton``, ``torch`` or ``reference`` (the same as ``torch``, which follows the definition).
        wide: return the output in the dtype of the state.

    Returns:
        Output ``(B, H, E)`` in the dtype of q, or of the state if ``wide``.

    Raises:
        ValueError: on shapes, types, numbers or a backend that do not fit.
        NotImplementedError: in forward mode and inside torch.func's transforms.
    """
    s = state.s if isinstance(state, NormalizedState) else state
    _check_step(q, k, v, log_decay, state)
    check_number("scale", scale)
    check_number("eps", eps, above=0)
    if normalize != isinstance(state, NormalizedState):
        raise ValueError(f"normalize={normalize} does not go with a state of type {type(state).__name__}.")
    others = log_decay, *_tensors(state)
    chosen = linear_step.enter(backend, q, k, v, others=others, missing=unfit_state(s))
    log_decay = _bounded_decay(log_decay)
    output = linear_step(LinearToken(q, k, v, log_decay, s, 1.0 if normalize else scale, normalize or wide, chosen))
    if isinstance(state, NormalizedState):
        if log_decay is not None:
            kept = log_decay.to(state.z.dtype).exp()
            state.z.mul_(kept if kept.dim() == 3 else kept.expand(q.shape[:2])[..., None])
        state.z.add_(k)
        output = output / _bounded((q.to(state.z.dtype) * state.z).sum(-1, keepdim=True), eps) * scale
    return output.to(s.dtype if wide else q.dtype)


def _bounded_decay(log_decay: Tensor | None) -> Tensor | None:
    """Log decays that every backend can take: e^-1000 is 0 in all precisions, and infinities have no difference."""
    check_decay(log_decay)
    if log_decay is None or log_decay.dim() == 4:  # the forms with a decay per channel bound it, and keep no copy
        return log_decay
    return log_decay.clamp(min=FORGOTTEN, max=0)


def _tensors(state: State | None) -> tuple[Tensor | None, ...]:
    return (state.s, state.z) if isinstance(state, NormalizedState) else (state,)


def _check_step(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, state: State) -> None:
    check_arrays(q=q, k=k, v=v)
    check_arrays(log_decay=log_decay)
    if q.dim() != 3 or k.shape != q.shape or v.dim() != 3 or v.shape[:2] != q.shape[:2]:
        raise ValueError(
            f"expected q, k (B, H, D) and v (B, H, E), got {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}."
        )
    _check_widths(q, v)
    batch, heads, width = q.shape
    check_shape("log_decay", log_decay, (heads,), (batch, heads), (batch, heads, width))
    _check_state("state", state, (batch, heads, width, v.shape[-1]))


def _check_state(name: str, state: State, shape: tuple[int, ...]) -> None:
    parts: list[tuple[str, Any, tuple[int, ...]]] = [(name, state, shape)]
    if isinstance(state, NormalizedState):
        parts = [(f"{name}.s", state.s, shape), (f"{name}.z", state.z, shape[:3])]
    for part_name, part, wanted in parts:
        check_arrays(**{part_name: part})
        if part.shape != wanted:
            raise ValueError(f"{part_name} has shape {tuple(part.shape)}, expected {wanted}.")


def _bounded(value: Tensor, eps: float) -> Tensor:
    return torch.where(value < 0, value.clamp(max=-eps), value.clamp(min=eps))


def _normalized(
    sums: Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]],
    v: Tensor,
    state: NormalizedState,
    ones: int,
    eps: float,
) -> tuple[Tensor, NormalizedState]:
    """The normalizer is what values of one add up to: a further column of v, or a call of its own if ``ones`` > 1.

    The tiles of the Triton kernels want rows of whole 16 bytes, and v one column wider would need the next wider ones.
    """
    column = F.pad(v.new_ones(1), (0, ones - 1)).expand(*v.shape[:3], ones)
    z = F.pad(state.z[..., None], (0, ones - 1))
    if ones == 1:
        both, last = sums(torch.cat([v, column], -1), torch.cat([state.s, z], -1), 1.0)
        output, below, s, z = both[..., :-1], both[..., -1:], last[..., :-1].contiguous(), last[..., -1]
    else:
        output, s = sums(v, state.s, 1.0)
        below, last = sums(column, z, 1.0)
        below, z = below[..., :1], last[..., 0]
    return output / _bounded(below, eps), NormalizedState(s, z.contiguous())


def _initial(given: State | None, q: Tensor, k: Tensor, v: Tensor, normalize: bool) -> State:
    dtype = torch.promote_types(q.dtype, torch.float32)
    shape = (q.shape[0], q.shape[2], k.shape[-1], v.shape[-1])
    if given is None:
        s = torch.zeros(shape, dtype=dtype, device=q.device)
        return NormalizedState(s, s.new_zeros(shape[:3])) if normalize else s
    if normalize != isinstance(given, NormalizedState):
        raise ValueError(f"normalize={normalize} does not go with an initial_state of type {type(given).__name__}.")
    _check_state("initial_state", given, shape)
    if isinstance(given, NormalizedState):
        return NormalizedState(given.s.to(dtype), given.z.to(dtype))
    return given.to(dtype)


def _check(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, documents: Tensor | None, algorithm: str) -> None:
    if algorithm not in ALGORITHMS:
        raise ValueError(f"algorithm={algorithm!r}: expected one of {', '.join(ALGORITHMS)}.")
    check_arrays(q=q, k=k, v=v)
    check_arrays(log_decay=log_decay)
    check_devices(q=q, log_decay=log_decay)
    if q.dim() != 4 or k.shape != q.shape or v.dim() != 4 or v.shape[:3] != q.shape[:3]:
        raise ValueError(
            f"expected q, k (B, T, H, D) and v (B, T, H, E), got {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}."
        )
    batch, length, heads, _ = q.shape
    check_shape("log_decay", log_decay, (heads,), tuple(q.shape[:3]), tuple(q.shape))
    if documents is not None:
        check_integers("documents", documents, (batch, length))
        check_devices(q=q, documents=documents)
    _check_widths(q, v)


def _check_widths(q: Tensor, v: Tensor) -> None:
    if not q.shape[-1] or not v.shape[-1]:
        raise ValueError(f"keys of {q.shape[-1]} and values of {v.shape[-1]} numbers: expected at least 1 of each.")
