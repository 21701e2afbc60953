"""What the ops of delta attention take."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class DeltaArguments(NamedTuple):
    """Arguments of delta attention.

    Attributes:
        log_decay: None, ``(Hv,)``, ``(B, T, Hv)`` or ``(B, T, Hv, D)``, of any sign: what is above 0 counts as 0.
        beta: given alone; without it, ``read`` and ``erase`` nothing is erased.
        read: given with ``erase`` alone.
        erase: given with ``read`` alone.
        state: the state before token 0.
        backend: ``torch``, ``triton`` or ``reference``; the others as in :func:`zoo_kernels.delta_attention`.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    log_decay: Tensor | None
    beta: Tensor | None
    read: Tensor | None
    erase: Tensor | None
    state: Tensor
    documents: Tensor | None
    scale: float
    backend: str


class DeltaUpstream(NamedTuple):
    """What the backward pass takes besides: states before the segments, gradients, whether the decay has one."""

    starts: Tensor
    grad_output: Tensor
    grad_final: Tensor
    decay_gradient: bool


class DeltaToken(NamedTuple):
    """Arguments of a step: one token; ``state`` moves on in place."""

    q: Tensor
    k: Tensor
    v: Tensor
    log_decay: Tensor | None
    beta: Tensor | None
    read: Tensor | None
    erase: Tensor | None
    state: Tensor
    scale: float
    backend: str
