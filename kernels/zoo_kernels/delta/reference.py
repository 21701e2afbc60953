"""Oracle for delta attention: the recurrence, token by token, written to be read, not to be fast."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo_kernels.chunks import FORGOTTEN
from zoo_kernels.delta.arguments import DeltaArguments


def reference_delta_attention(x: DeltaArguments) -> tuple[Tensor, Tensor]:
    """``S = (I - e p^T) Diag(exp g) S + k w^T``, ``o = scale * q S``; everything in the precision of the state.

    Returns:
        Output ``(B, T, Hv, E)`` and the state after the last token ``(B, Hv, D, E)``.
    """
    state = x.state
    batch, length, heads, width = *x.v.shape[:3], state.shape[-2]
    q, k, v = (of_value_heads(array, heads).to(state.dtype) for array in (x.q, x.k, x.v))
    decay = torch.ones(batch, length, heads, width, dtype=state.dtype, device=state.device)
    if x.log_decay is not None:
        given = x.log_decay.clamp(min=FORGOTTEN, max=0).to(state.dtype).exp()
        decay = decay * (given if given.dim() == 4 else given[..., None])
    read = erase = None
    if x.beta is not None:
        beta = x.beta.to(state.dtype)[..., None]
        read, erase, v = k, beta * k, beta * v
    elif x.read is not None and x.erase is not None:
        read, erase = (of_value_heads(array, heads).to(state.dtype) for array in (x.read, x.erase))
    outputs = []
    for t in range(length):
        if x.documents is not None and t > 0:
            goes_on = x.documents[:, t] == x.documents[:, t - 1]
            state = torch.where(goes_on[:, None, None, None], state, torch.zeros_like(state))
        state = decay[:, t, :, :, None] * state
        if read is not None and erase is not None:
            found = torch.einsum("bhd,bhde->bhe", read[:, t], state)
            state = state - torch.einsum("bhd,bhe->bhde", erase[:, t], found)
        state = state + torch.einsum("bhd,bhe->bhde", k[:, t], v[:, t])
        outputs.append(torch.einsum("bhd,bhde->bhe", q[:, t], state) * x.scale)
    if outputs:
        return torch.stack(outputs, 1), state
    arrays = [array for array in x[:7] if array is not None]
    nothing = 0 * sum(array.sum() for array in arrays)  # without a token, gradients are zeros
    return v + nothing, state + nothing


def of_value_heads(x: Tensor, heads: int) -> Tensor:
    """``(B, T, H, X)`` with each head repeated for the value heads that read it."""
    return x if x.shape[2] == heads else x.repeat_interleave(heads // x.shape[2], 2)
