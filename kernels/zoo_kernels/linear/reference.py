"""Reference form of linear attention: the quadratic sum over pairs, written for clarity and as an oracle of tests."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo_kernels.chunks import precise


def reference_linear_attention(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, state: Tensor, documents: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Computes ``o_t = q_t S_t`` by summing over all pairs ``j <= t``, with O(T^2) memory.

    Args:
        q: queries ``(B, T, H, D)``.
        k: keys ``(B, T, H, D)``.
        v: values ``(B, T, H, E)``.
        log_decay: None, ``(H,)`` or ``(B, T, H)``.
        state: ``(B, H, D, E)``, the state before token 0.
        documents: None or ``(B, T)`` ids.

    Returns:
        Output ``(B, T, H, E)`` and the state after the last token ``(B, H, D, E)``.
    """
    batch, length, heads, _ = q.shape
    if log_decay is None:
        log_decay = q.new_zeros(heads)
    total = precise(log_decay).expand(batch, length, heads).cumsum(1).transpose(1, 2)  # (B, H, T)
    ids = documents if documents is not None else torch.zeros(batch, length, dtype=torch.long, device=q.device)
    time = torch.arange(length, device=q.device)
    allowed = (time[:, None] >= time[None, :]) & (ids[:, :, None] == ids[:, None, :])  # (B, T, T)
    exponent = (total[:, :, :, None] - total[:, :, None, :]).masked_fill(~allowed[:, None], -torch.inf)
    weights = torch.einsum("bthd,bjhd->bhtj", q, k) * exponent.exp().to(q.dtype)
    first = (ids == ids[:, :1])[:, None, :, None]  # tokens that the given state reaches
    from_state = torch.einsum("bthd,bhde->bhte", q, state) * total.exp().to(q.dtype)[..., None] * first
    output = (torch.einsum("bhtj,bjhe->bhte", weights, v) + from_state).transpose(1, 2)
    if length == 0:
        return output, state
    last = (total[:, :, -1:] - total).exp().to(q.dtype) * (ids == ids[:, -1:])[:, None]
    final = torch.einsum("bht,bthd,bthe->bhde", last, k, v)
    return output, final + state * total[:, :, -1, None, None].exp().to(q.dtype) * first[:, :, -1:, :]
