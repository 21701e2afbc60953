"""Decays of a state that each token chooses anew for each channel of the keys, in fp32 or better."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.mixers.parts.decays import inverse_softplus, spread, wide
from zoo.mixers.parts.low_rank import LowRank

LOWEST = -5.0  # of the bounded decay of the published checkpoints


class ChannelDecay(nn.Module):
    """Log-decays of Kimi Delta Attention (Kimi Team 2025, arXiv:2510.26692), from a projection of low rank.

        softplus    -exp(a_h) softplus(W x + b)
        bounded     -5 sigmoid(exp(a_h) (W x + b))

    a is one number per head, b one per channel. A checkpoint belongs to one of the two. As published, softplus(b)
    starts between 0.001 and 0.1, and exp(a) between 1 and 16 with ``softplus`` and at 1 with ``bounded``; evenly spread
    and not drawn.

    Args:
        width: numbers of an input.
        heads: key heads H.
        channels: numbers D of a key.
        rank: of the projection.
        kind: ``softplus`` or ``bounded``.
    """

    def __init__(self, width: int, heads: int, channels: int, rank: int, kind: str = "softplus") -> None:
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"decay={kind!r}: expected one of {', '.join(KINDS)}.")
        self.heads, self.kind = heads, kind
        self.projection = LowRank(width, rank, heads * channels)
        rates = (1 + 15 * spread(heads)).log() if kind == "softplus" else torch.zeros(heads)
        steps = 1e-3 * 100 ** spread(channels).expand(heads, -1)
        self.log_rate = nn.Parameter(rates.float())
        self.bias = nn.Parameter(inverse_softplus(steps).flatten().float())

    def forward(self, x: Tensor) -> Tensor:
        """``(B, T, C)`` -> ``(B, T, H, D)``, <= 0."""
        chosen = (wide(self.projection(x)) + wide(self.bias)).unflatten(-1, (self.heads, -1))
        return KINDS[self.kind](chosen, wide(self.log_rate).exp()[:, None])


def _softplus(chosen: Tensor, rate: Tensor) -> Tensor:
    return -rate * F.softplus(chosen)


def _bounded(chosen: Tensor, rate: Tensor) -> Tensor:
    return LOWEST * torch.sigmoid(rate * chosen)


KINDS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"softplus": _softplus, "bounded": _bounded}
