"""Gradients of linear attention that the Triton form computes outside its kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from zoo_kernels.linear.triton.host import HostCall


def fitting(dtype: torch.dtype, grad_output: Tensor, grad_final: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
    """Scales the gradients of a wide output into the range of fp16.

    Outputs beyond the range of fp16 have gradients that are as small, and the smallest number of fp16 is 6e-8.

    Returns:
        The scale, or None where no scaling is needed, and both gradients divided by it.
    """
    if dtype != torch.float16 or grad_output.dtype == torch.float16:
        return None, grad_output, grad_final
    size = grad_output.abs().amax().clamp(min=1e-30)
    return size, grad_output / size, grad_final / size


def decay_gradient(
    call: HostCall, added: Tensor, before: Tensor, behind: Tensor, state: Tensor, grad_state: Tensor
) -> Tensor:
    """Computes the gradient of each token's log decay ``(B, T, H)``: how much of the output passes over the token.

    What passes over the border of a segment is the product of the state there and its gradient; inside a segment tokens
    add and take away (``added``). The rounding errors of a segment, by which the sum at its end misses the known value,
    are spread over its tokens by the size of what they add.
    """
    known = (state.double() * grad_state).sum((-2, -1))[:, None]  # (B, segments, H)
    if call.segments > 1:
        known = torch.cat([known, (before[1:].double() * behind[:-1]).sum((-2, -1)).movedim(0, 1)], 1)
    batch, length, heads = added.shape
    added = F.pad(added, (0, 0, 0, call.segments * call.segment - length)).view(batch, -1, call.segment, heads)
    passed = added.cumsum(2)
    error = F.pad(known[:, 1:] - (known - passed[:, :, -1])[:, :-1], (0, 0, 0, 1))
    sizes = added.abs().cumsum(2)
    share = (sizes - added.abs()) / sizes[:, :, -1:].clamp(min=1e-300)
    passing = known[:, :, None] - passed + added + error[:, :, None] * share
    return passing.reshape(batch, -1, heads)[:, :length]
