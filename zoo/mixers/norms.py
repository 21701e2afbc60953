"""Root-mean-square norms, in fp32, or fp64 for an fp64 input."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS = 1e-6


class RMSNorm(nn.Module):
    """``x / sqrt(mean(x^2) + 1e-6) * weight`` over the last dimension (Zhang and Sennrich 2019, arXiv:1910.07467)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Same shape and dtype as ``x``."""
        wide = torch.promote_types(x.dtype, torch.float32)
        return F.rms_norm(x.to(wide), x.shape[-1:], self.weight.to(wide), EPS).to(x.dtype)


class SRMSNorm(nn.Module):
    """RMSNorm without a weight, the norm of TransNormerLLM (Qin et al. 2023, arXiv:2307.14995)."""

    def __init__(self, width: int) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        """Same shape and dtype as ``x``."""
        wide = torch.promote_types(x.dtype, torch.float32)
        return F.rms_norm(x.to(wide), x.shape[-1:], None, EPS).to(x.dtype)


NORMS: dict[str, type[nn.Module]] = {"rms": RMSNorm, "srms": SRMSNorm}


def build_norm(name: str, width: int) -> nn.Module:
    """The norm called ``name``: ``rms`` or ``srms``.

    Raises:
        ValueError: on any other name.
    """
    if name not in NORMS:
        raise ValueError(f"norm={name!r}: expected one of {', '.join(NORMS)}.")
    return NORMS[name](width)
