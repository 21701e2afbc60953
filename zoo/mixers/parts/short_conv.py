"""The short convolution of recurrent mixers: every number of a token is mixed with those of the few tokens before."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.mixers.parts.call import Call
from zoo_kernels import short_convolution


class ShortConvolution(nn.Module):
    """``SiLU(sum_i w_i x_{t-i} + b)`` of each channel, over the token and the K - 1 before it in its document.

    Through a cache the last K - 1 inputs are remembered, before the activation, of each row at its own length.

    Args:
        sizes: numbers of the arrays that are convolved side by side.
        width: tokens K.
        bias: whether a bias is added.

    Attributes:
        weight: ``(C, K)``, uniform within 1 / sqrt(K) at first; the last column is of the token itself.
        bias: ``(C,)``, drawn likewise, or None.
    """

    def __init__(self, sizes: Sequence[int], width: int, bias: bool = False) -> None:
        super().__init__()
        self.sizes, bound = list(sizes), width**-0.5
        self.weight = nn.Parameter(torch.empty(sum(sizes), width).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(sum(sizes)).uniform_(-bound, bound)) if bias else None

    @property
    def channels(self) -> int:
        """Numbers of a token."""
        return self.weight.shape[0]

    @property
    def tail(self) -> int:
        """Tokens that a cache remembers."""
        return self.weight.shape[1] - 1

    def forward(self, parts: Sequence[Tensor], call: Call) -> Sequence[Tensor]:
        """Arrays ``(B, T, size)``, convolved and activated."""
        x = torch.cat(list(parts), -1)
        weight, bias = self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype)
        if call.cache is None:
            y, _ = short_convolution(x, weight, bias=bias, documents=call.documents)
        else:
            initial = call.cache.tail.to(x.dtype)
            y, tail = short_convolution(
                x, weight, bias=bias, initial=initial, lengths=call.lengths, return_state=True
            )  # fmt: skip
            call.cache.keep_tail(tail)
        return F.silu(y).split(self.sizes, -1)


def tail_of(conv: ShortConvolution | None) -> tuple[int, int]:
    """Tokens and numbers that a cache remembers for a convolution, none without one."""
    return (0, 0) if conv is None else (conv.tail, conv.channels)
