"""Data-dependent decays of a state: one number per token and head, in fp32 or better."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GOLDEN = (5**0.5 - 1) / 2


def wide(x: Tensor) -> Tensor:
    """``x`` in fp32 or better."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def spread(count: int) -> Tensor:
    """``count`` numbers in fp64, evenly spread over 0 to 1."""
    return (torch.arange(count, dtype=torch.float64) + 0.5) / count


def inverse_softplus(x: Tensor) -> Tensor:
    """The number whose softplus is ``x``, which is above 0."""
    return x + torch.log(-torch.expm1(-x))


class StepDecay(nn.Module):
    """Decay of Mamba-2: step ``d = softplus(W x + b)``, log decay ``-A d`` (Dao and Gu 2024, arXiv:2405.21060).

    A starts between 1 and 16 and the step of a zero input between 0.001 and 0.1, as published, but evenly spread over
    the heads and not drawn: A in the order of the heads, steps in that of multiples of the golden ratio. Where others
    begin A elsewhere, that is ``slowest``.
    """

    def __init__(self, width: int, heads: int, slowest: float = 1.0) -> None:
        super().__init__()
        self.projection = nn.Linear(width, heads, bias=False)
        place = spread(heads)
        self.log_rate = nn.Parameter((slowest + (16 - slowest) * place).log().float())
        order = ((torch.arange(heads) + 0.5) * GOLDEN % 1).argsort().argsort()
        self.bias = nn.Parameter(inverse_softplus(1e-3 * 100 ** place[order]).float())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Maps ``(B, T, C)`` to the log decay and the step, both ``(B, T, H)``."""
        step = F.softplus(wide(self.projection(x)) + wide(self.bias))
        return -wide(self.log_rate).exp() * step, step


class SigmoidDecay(nn.Module):
    """Decay ``log sigmoid(W x + b) / 16`` (GLA, Yang et al. 2023, arXiv:2312.06635), one per head, without a step."""

    temperature = 16

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.projection = nn.Linear(width, heads, bias=False)
        self.bias = nn.Parameter(torch.zeros(heads))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Maps ``(B, T, C)`` to the log decay ``(B, T, H)``, and None in place of a step."""
        return F.logsigmoid(wide(self.projection(x)) + wide(self.bias)) / self.temperature, None


TOKEN_DECAYS: dict[str, type[nn.Module]] = {"mamba2": StepDecay, "sigmoid": SigmoidDecay}


def retention_log_decay(heads: int, device: torch.device | str | None = None) -> Tensor:
    """Log decay ``log(1 - 2^(-5 - h))`` of each head, ``(H,)`` fp32 (RetNet, Sun et al. 2023, arXiv:2307.08621)."""
    head = torch.arange(heads, dtype=torch.float32, device=device)
    return torch.log1p(-torch.exp2(-5 - head))
