"""Arguments of the custom ops of linear attention."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class LinearArguments(NamedTuple):
    """Arguments of the forward op of linear attention.

    The fields not listed are as in :func:`zoo_kernels.linear_attention`.

    Attributes:
        state: the state before token 0.
        wide: the output is in the dtype of the state, not in that of q.
        backend: ``torch``, ``triton`` or ``reference``.
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
        """Dtype of the output."""
        return self.state.dtype if self.wide else self.q.dtype


class LinearUpstream(NamedTuple):
    """Further arguments of the backward op of linear attention.

    Attributes:
        starts: states before the segments, from the forward pass.
        grad_output: gradient of the output.
        grad_final: gradient of the final state.
        decay_gradient: whether the gradient of the decay is wanted.
    """

    starts: Tensor
    grad_output: Tensor
    grad_final: Tensor
    decay_gradient: bool


class LinearToken(NamedTuple):
    """Arguments of the op for one token; ``state`` is updated in place."""

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
        """Dtype of the output."""
        return self.state.dtype if self.wide else self.q.dtype
