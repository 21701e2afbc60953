"""What the ops of linear attention take."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class LinearArguments(NamedTuple):
    """Arguments of linear attention.

    Attributes:
        state: the state before token 0.
        wide: the output is in the precision of the state, not in that of q.
        backend: ``torch``, ``triton`` or ``reference``; the others as in :func:`zoo_kernels.linear_attention`.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    log_decay: Tensor | None
    state: Tensor
    documents: Tensor | None
    scale: float
    algorithm: str
    wide: bool
    backend: str

    @property
    def dtype(self) -> torch.dtype:
        """Type of the output."""
        return self.state.dtype if self.wide else self.q.dtype


class LinearUpstream(NamedTuple):
    """What the backward pass takes besides: states before the segments, gradients, whether the decay has one."""

    starts: Tensor
    grad_output: Tensor
    grad_final: Tensor
    decay_gradient: bool


class LinearToken(NamedTuple):
    """Arguments of a step: one token; ``state`` moves on in place."""

    q: Tensor
    k: Tensor
    v: Tensor
    log_decay: Tensor | None
    state: Tensor
    scale: float
    wide: bool
    backend: str

    @property
    def dtype(self) -> torch.dtype:
        """Type of the output."""
        return self.state.dtype if self.wide else self.q.dtype
