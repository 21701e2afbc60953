"""Data-dependent decays of a state: one number per token and head, in fp32 or better."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GOLDEN = (5**0.5 - 1) / 2


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


class StepDecay(nn.Module):
    """Decay of Mamba-2: step ``d = softplus(W x + b)``, log decay ``-A d`` (Dao and Gu 2024, arXiv:2405.21060).

    A starts between 1 and 16 and the step of a zero input between 0.001 and 0.1, as published, but evenly spread over
    the heads instead of drawn: A in the order of the heads, steps in the order of multiples of the golden ratio.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.projection = nn.Linear(width, heads, bias=False)
        place = (torch.arange(heads, dtype=torch.float64) + 0.5) / heads
        self.log_rate = nn.Parameter((1 + 15 * place).log().float())
        order = ((torch.arange(heads) + 0.5) * GOLDEN % 1).argsort().argsort()
        step = 1e-3 * 100 ** place[order]
        self.bias = nn.Parameter((step + torch.log(-torch.expm1(-step))).float())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Maps ``(B, T, C)`` to the log decay and the step, both ``(B, T, H)``."""
        step = F.softplus(_wide(self.projection(x)) + _wide(self.bias))
        return -_wide(self.log_rate).exp() * step, step


class SigmoidDecay(nn.Module):
    """Decay ``log sigmoid(W x + b) / 16`` (GLA, Yang et al. 2023, arXiv:2312.06635), one per head, without a step."""

    temperature = 16

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.projection = nn.Linear(width, heads, bias=False)
        self.bias = nn.Parameter(torch.zeros(heads))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Maps ``(B, T, C)`` to the log decay ``(B, T, H)``, and None in place of a step."""
        return F.logsigmoid(_wide(self.projection(x)) + _wide(self.bias)) / self.temperature, None


TOKEN_DECAYS: dict[str, type[nn.Module]] = {"mamba2": StepDecay, "sigmoid": SigmoidDecay}


def retention_log_decay(heads: int, device: torch.device | str | None = None) -> Tensor:
    """Log decay ``log(1 - 2^(-5 - h))`` of each head, ``(H,)`` fp32 (RetNet, Sun et al. 2023, arXiv:2307.08621)."""
    head = torch.arange(heads, dtype=torch.float32, device=device)
    return torch.log1p(-torch.exp2(-5 - head))
