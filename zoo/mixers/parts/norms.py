"""Root-mean-square norms, in fp32, or fp64 for an fp64 input."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS = 1e-6


class _FusedBackward(torch.autograd.Function):
    """RMS norm for CPUs, where PyTorch's own backward pass is a chain of separate operations, several times slower.

    Layer norm's fused backward with a mean of zero is that of the RMS norm but for the part that centers the gradient,
    which is added back.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
        mean_square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1])
        scale = mean_square.add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        y = x * scale
        return y if weight is None else y.mul_(weight)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        grad, wanted = grad.contiguous(), [True, weight is not None, False]
        grad_x, grad_weight, _ = torch.ops.aten.native_layer_norm_backward(
            grad, x, x.shape[-1:], torch.zeros_like(scale), scale, weight, None, wanted
        )
        mean = grad.mean(-1, keepdim=True) if weight is None else (grad @ (weight / len(weight)))[..., None]
        return grad_x.add_(mean * scale), grad_weight, None


def rms_norm(x: Tensor, weight: Tensor | None, eps: float = EPS) -> Tensor:
    """``x / sqrt(mean(x^2) + eps) * weight`` over the last dimension, in fp32 or better; dtype as x."""
    wide = torch.promote_types(x.dtype, torch.float32)
    wide_weight = None if weight is None else weight.to(wide)
    if x.device.type == "cpu" and not torch.compiler.is_compiling():
        return _FusedBackward.apply(x.to(wide).contiguous(), wide_weight, eps).to(x.dtype)
    return F.rms_norm(x.to(wide), x.shape[-1:], wide_weight, eps).to(x.dtype)


class RMSNorm(nn.Module):
    """``x / sqrt(mean(x^2) + eps) * weight`` over the last dimension (Zhang and Sennrich 2019, arXiv:1910.07467)."""

    def __init__(self, width: int, eps: float = EPS) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalizes ``x``; shape and dtype are kept."""
        return rms_norm(x, self.weight, self.eps)


class SRMSNorm(nn.Module):
    """RMSNorm without a weight, the norm of TransNormerLLM (Qin et al. 2023, arXiv:2307.14995)."""

    def __init__(self, width: int, eps: float = EPS) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalizes ``x``; shape and dtype are kept."""
        return rms_norm(x, None, self.eps)


NORMS: dict[str, type[nn.Module]] = {"rms": RMSNorm, "srms": SRMSNorm}


def checked_norm(name: str) -> str:
    """Returns ``name`` if it is a norm, for options where ``none`` is not allowed.

    Raises:
        ValueError: if it is none.
    """
    if name not in NORMS:
        raise ValueError(f"norm={name!r}: expected one of {', '.join(NORMS)}.")
    return name


def build_norm(name: str, width: int, eps: float = EPS) -> nn.Module:
    """Builds a norm by name: ``rms`` or ``srms``.

    Raises:
        ValueError: on any other name.
    """
    return NORMS[checked_norm(name)](width, eps)
