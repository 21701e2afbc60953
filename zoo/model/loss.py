"""Cross-entropy of the next token, computed in chunks so that the logits of a batch are never stored at once."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

ROWS = 1024  # logits of this many tokens exist at a time


class _LinearCrossEntropy(torch.autograd.Function):
    """Forward computes the gradients too, chunk by chunk, so that no logits are kept and none are computed twice."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, factors: Tensor) -> tuple[Tensor, Tensor]:
        losses = torch.empty(targets.shape, dtype=torch.float32, device=hidden.device)
        wants = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        grad_hidden = torch.empty_like(hidden) if wants else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if wants else None
        matrix = weight.to(hidden.dtype)
        for start in range(0, hidden.shape[0], ROWS):
            rows = slice(start, start + ROWS)
            logits = (hidden[rows] @ matrix.T).float()
            log_probabilities = F.log_softmax(logits, dim=-1)
            losses[rows] = -log_probabilities.gather(1, targets[rows, None])[:, 0]
            if grad_hidden is None or grad_weight is None:
                continue
            grad = log_probabilities.exp_()
            grad.scatter_add_(1, targets[rows, None], grad.new_full((grad.shape[0], 1), -1.0))
            grad = grad.mul_(factors[rows, None]).to(hidden.dtype)
            torch.mm(grad, matrix, out=grad_hidden[rows])
            grad_weight += grad.T @ hidden[rows]
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.weight_dtype = weight.dtype
        return torch.dot(losses, factors), losses

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_total: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden * grad_total, (grad_weight * grad_total).to(ctx.weight_dtype), None, None


def next_token_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    mask: Tensor | None = None,
    token_weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Computes the mean cross-entropy over the unmasked targets, and the loss of each, in nats.

    With ``token_weights`` the mean is of weight times loss, over all ``B * T`` targets whatever their weights: what a
    token adds to the gradient does not depend on the others, and equal micro batches add up to their whole batch.

    Args:
        hidden: hidden states ``(B, T, C)``.
        weight: output matrix ``(V, C)``.
        targets: ``(B, T)`` token ids.
        mask: ``(B, T)`` bool, True for targets that count; None for all.
        token_weights: ``(B, T)`` fp32 >= 0, in place of a mask.

    Returns:
        Scalar with a gradient for hidden and weight; ``(B, T)`` fp32 losses without one.
    """
    if token_weights is not None:
        factors = token_weights / token_weights.numel()
    else:
        factors = targets.new_ones(targets.shape, dtype=torch.float32) if mask is None else mask.float()
        factors = factors / factors.sum().clamp(min=1.0)
    if not torch.is_grad_enabled():
        weight, hidden = weight.detach(), hidden.detach()
    total, losses = _LinearCrossEntropy.apply(hidden.flatten(0, 1), weight, targets.flatten(), factors.flatten())
    return total, losses.detach().view_as(targets)
