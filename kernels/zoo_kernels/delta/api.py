"""Delta attention: the public functions, their checks and the dispatch to a backend."""

from __future__ import annotations

import torch
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
from zoo_kernels.delta.arguments import DeltaArguments, DeltaToken
from zoo_kernels.delta.torch_ops import delta_forward_op, delta_step_op


@without_autocast
def delta_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None = None,
    *,
    beta: Tensor | None = None,
    read: Tensor | None = None,
    erase: Tensor | None = None,
    scale: float = 1.0,
    initial_state: Tensor | None = None,
    return_state: bool = False,
    documents: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor | None]:
    """Causal linear attention that erases what it reads before it writes: the delta rule and its generalization.

    ``S_t = (I - erase_t read_t^T) Diag(exp log_decay_t) S_{t-1} + k_t v_t^T``, ``o_t = scale * q_t S_t``. With ``beta``
    it is the delta rule: ``read = k``, ``erase = beta k``, and ``beta v`` is written. Without any of the three nothing
    is erased. The state stays bounded where ``|k|^2 beta <= 2``: normalize the keys.

    DeltaNet (Yang et al. 2024, arXiv:2406.06484), Gated DeltaNet (arXiv:2412.06464), Kimi Delta Attention
    (arXiv:2510.26692), RWKV-7 (arXiv:2503.14456).

    Args:
        q: ``(B, T, H, D)``; any strides, one floating dtype with k, v, read and erase; sums are in fp32 or better.
        k: ``(B, T, H, D)``.
        v: ``(B, T, Hv, E)``, Hv a multiple of H: value head h reads key head ``h // (Hv // H)``.
        log_decay: None (no decay), ``(Hv,)``, ``(B, T, Hv)`` or ``(B, T, Hv, D)``, all <= 0. Positive ones are refused
            on the CPU; where that would wait for a device or cut a graph they count as 0, and have no gradient.
        beta: ``(B, T, Hv)``: how much of the difference between the value and what is read is written.
        read: ``(B, T, H, D)`` or ``(B, T, Hv, D)``: what is looked up in the decayed state.
        erase: ``(B, T, H, D)`` or ``(B, T, Hv, D)``: where what is found is taken away.
        scale: any finite number.
        initial_state: state before token 0, ``(B, Hv, D, E)``. It belongs to the document of token 0.
        return_state: also give the state after the last token.
        documents: ``(B, T)`` integer ids of packed documents, each contiguous; nothing crosses a boundary but NaN and
            inf (given, or by overflow), which may reach tokens before them and other documents of their row, and never
            another row.
        backend: ``auto``, ``triton``, ``torch`` or ``reference``.

    Returns:
        Output ``(B, T, Hv, E)`` in the dtype of q, and the final state ``(B, Hv, D, E)`` in fp32 or better if
        ``return_state``, else None.

    Raises:
        ValueError: on shapes, types, numbers or a backend that do not fit, on ``beta`` beside ``read`` or ``erase``.
        NotImplementedError: in forward mode and inside torch.func's transforms.

    Examples:
        >>> q, k, v = torch.randn(3, 1, 100, 2, 16)
        >>> k = torch.nn.functional.normalize(k, dim=-1)
        >>> o, state = delta_attention(q, k, v, beta=torch.rand(1, 100, 2), return_state=True)
        >>> o.shape, state.shape
        (torch.Size([1, 100, 2, 16]), torch.Size([1, 2, 16, 16]))
    """
    _check(q, k, v, log_decay, beta, read, erase, 4)
    if documents is not None:
        check_integers("documents", documents, tuple(q.shape[:2]))
        check_devices(q=q, documents=documents)
    check_number("scale", scale)
    state = _initial(initial_state, q, v)
    chosen = delta_forward_op.enter(backend, q, k, v, others=(log_decay, beta, read, erase, initial_state))
    check_decay(log_decay)
    call = DeltaArguments(q, k, v, log_decay, beta, read, erase, state, documents, scale, chosen)
    output, last = delta_forward_op(call)[:2]
    return output.to(q.dtype), last if return_state else None


@without_autocast
@torch.no_grad()
def delta_attention_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    state: Tensor,
    *,
    beta: Tensor | None = None,
    read: Tensor | None = None,
    erase: Tensor | None = None,
    scale: float = 1.0,
    backend: str = "auto",
) -> Tensor:
    """One token of :func:`delta_attention`, updating ``state`` in place; no gradient, and safe inside a CUDA graph.

    Args:
        q: ``(B, H, D)``.
        k: ``(B, H, D)``.
        v: ``(B, Hv, E)``.
        log_decay: None, ``(Hv,)``, ``(B, Hv)`` or ``(B, Hv, D)``.
        state: ``(B, Hv, D, E)``, fp32 or better.
        beta: ``(B, Hv)``.
        read: ``(B, H, D)`` or ``(B, Hv, D)``.
        erase: ``(B, H, D)`` or ``(B, Hv, D)``.
        scale: any finite number.
        backend: ``auto``, ``triton``, ``torch`` or ``reference`` (the same as ``torch``: it is the definition).

    Returns:
        Output ``(B, Hv, E)`` in the dtype of q.

    Raises:
        ValueError: on shapes, types, numbers or a backend that do not fit, on ``beta`` beside ``read`` or ``erase``.
        NotImplementedError: in forward mode and inside torch.func's transforms.
    """
    _check(q, k, v, log_decay, beta, read, erase, 3)
    check_arrays(state=state)
    check_shape("state", state, (*v.shape[:2], q.shape[-1], v.shape[-1]))
    check_devices(q=q, state=state)
    check_number("scale", scale)
    others = log_decay, beta, read, erase, state
    chosen = delta_step_op.enter(backend, q, k, v, others=others, missing=unfit_state(state))
    check_decay(log_decay)
    return delta_step_op(DeltaToken(q, k, v, log_decay, beta, read, erase, state, scale, chosen))


def _initial(given: Tensor | None, q: Tensor, v: Tensor) -> Tensor:
    dtype = torch.promote_types(q.dtype, torch.float32)
    shape = v.shape[0], v.shape[2], q.shape[-1], v.shape[-1]
    if given is None:
        return torch.zeros(shape, dtype=dtype, device=q.device)
    check_arrays(initial_state=given)
    check_devices(q=q, initial_state=given)
    check_shape("initial_state", given, shape)
    return given.to(dtype)


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    beta: Tensor | None,
    read: Tensor | None,
    erase: Tensor | None,
    dimensions: int,
) -> None:
    check_arrays(q=q, k=k, v=v, read=read, erase=erase)
    check_arrays(log_decay=log_decay)
    check_arrays(beta=beta)
    check_devices(q=q, log_decay=log_decay, beta=beta)
    if q.dim() != dimensions or k.shape != q.shape or v.dim() != dimensions or v.shape[:-2] != q.shape[:-2]:
        letters = "(B, T, H, D) and v (B, T, Hv, E)" if dimensions == 4 else "(B, H, D) and v (B, Hv, E)"
        shapes = ", ".join(str(tuple(x.shape)) for x in (q, k, v))
        raise ValueError(f"expected q, k {letters}, got {shapes}.")
    if not q.shape[-1] or not v.shape[-1]:
        raise ValueError(f"keys of {q.shape[-1]} and values of {v.shape[-1]} numbers: expected at least 1 of each.")
    heads, values = q.shape[-2], v.shape[-2]
    if (values % heads if heads else values) or (heads and not values):
        raise ValueError(f"v has {values} heads, expected a multiple of the {heads} of q and k.")
    if beta is not None and (read is not None or erase is not None):
        raise ValueError("beta is the delta rule, whose read and erase are made of k: give beta, or read and erase.")
    if (read is None) != (erase is None):
        given, other = ("read", "erase") if erase is None else ("erase", "read")
        raise ValueError(f"{given} is given without {other}: give both, or beta for the delta rule.")
    of_heads, of_channels = tuple(v.shape[:-1]), (*v.shape[:-1], q.shape[-1])
    check_shape("log_decay", log_decay, (values,), of_heads, of_channels)
    check_shape("beta", beta, of_heads)
    for name, array in (("read", read), ("erase", erase)):
        check_shape(name, array, tuple(q.shape), of_channels)
