"""Gradients of linear attention that the Triton form computes outside its kernels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


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
    segment: int, added: Tensor, before: Tensor, behind: Tensor, state: Tensor, grad_state: Tensor
) -> Tensor:
    """Computes the gradient of each token's log decay ``(B, T, H)``: how much of the output passes over the token.

    What passes over the border of a segment, which has ``segment`` tokens, is the product of the state there and that
    one's gradient; inside, tokens add and take away (``added``). What then seems to leave differs from what is known to
    leave by the rounding errors of the tokens between, and is spread over them by the size of what they add.
    """
    batch, length, heads = added.shape
    segments = -(-length // segment)
    known = (state.double() * grad_state).sum((-2, -1))[:, None]  # (B, segments, H)
    if segments > 1:
        known = torch.cat([known, (before[1:].double() * behind[:-1]).sum((-2, -1)).movedim(0, 1)], 1)
    added = F.pad(added, (0, 0, 0, segments * segment - length)).view(batch, -1, segment, heads)
    passed = added.cumsum(2)
    error = F.pad(known[:, 1:] - (known - passed[:, :, -1])[:, :-1], (0, 0, 0, 1))
    sizes = added.abs().cumsum(2)
    share = (sizes - added.abs()) / sizes[:, :, -1:].clamp(min=1e-300)
    passing = known[:, :, None] - passed + added + error[:, :, None] * share
    return passing.reshape(batch, -1, heads)[:, :length]
