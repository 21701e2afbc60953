"""PyTorch's fused CPU attention, called directly for its log-sum-exp: over whole causal sequences, and for tiles."""

from __future__ import annotations

import torch
from torch import Tensor

_aten = torch.ops.aten
DTYPES = (torch.float32, torch.float16, torch.bfloat16)  # its log-sum-exp of fp64 is fp32


def fuses(query: Tensor, v: Tensor) -> bool:
    """Returns whether the fused attention can compute a tile."""
    return query.dtype == torch.float32 and query.device.type == "cpu" and query.shape[-1] == v.shape[-1]


def fused_forward(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Computes output ``(n, 1, rows, X)`` and log-sum-exp ``(n, 1, rows)`` of tiles; ``mask`` is additive."""
    call = _aten._scaled_dot_product_flash_attention_for_cpu
    output, lse = call(query, key, value, 0.0, False, attn_mask=mask, scale=scale)
    return output, lse


def fused_backward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    grad: Tensor,
    output: Tensor,
    lse: Tensor,
    mask: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Computes the gradients of query, key and value of tiles; ``lse`` is ``(n, 1, rows, 1)``."""
    call = _aten._scaled_dot_product_flash_attention_for_cpu_backward
    arrays = grad, query, key, value, output, lse[..., 0].contiguous()
    grad_q, grad_k, grad_v = call(*arrays, 0.0, False, attn_mask=mask, scale=scale)
    return grad_q, grad_k, grad_v


def absorb(output: Tensor, grad_output: Tensor, grad_lse: Tensor) -> tuple[Tensor, Tensor | None]:
    """Folds the gradient of the log-sum-exp into the output that is passed to the fused backward pass.

    The backward pass uses the output only for its product with its gradient, from which the gradient of the log-sum-exp
    is to be subtracted. Rows without a gradient of the output cannot carry it: then nothing is changed.

    Returns:
        The output to pass on, and the gradient of the log-sum-exp that could not be folded in, or None.
    """
    size = grad_output.square().sum(-1)
    if ((size < 1e-30) & (grad_lse != 0)).any():
        return output, grad_lse
    factor = torch.where(size > 0, grad_lse / size, 0)
    return torch.addcmul(output, grad_output, factor[..., None], value=-1), None


def forward(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Computes output ``(B, T, H, D)`` and log-sum-exp ``(B, T, H)`` of causal attention."""
    heads = _heads(q, k, v)
    output, lse = _aten._scaled_dot_product_flash_attention_for_cpu(*heads, 0.0, True, scale=scale)
    return output.transpose(1, 2).contiguous(), lse.transpose(1, 2).contiguous()


def backward(arrays: tuple[Tensor, ...], grad_output: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Computes the gradients of q, k and v; ``arrays`` are q, k, v, output and log-sum-exp of :func:`forward`."""
    q, k, v, output, lse = arrays
    heads = _heads(grad_output.contiguous(), q, k, v, output)
    call = _aten._scaled_dot_product_flash_attention_for_cpu_backward
    grad_q, grad_k, grad_v = call(*heads, lse.transpose(1, 2), 0.0, True, scale=scale)
    grad_q, grad_k, grad_v = (x.transpose(1, 2).contiguous() for x in (grad_q, grad_k, grad_v))
    return grad_q, grad_k, grad_v


def _heads(*arrays: Tensor) -> list[Tensor]:
    dense = (x if x.stride(-1) == 1 else x.contiguous() for x in arrays)
    return [x.transpose(1, 2) for x in dense]
