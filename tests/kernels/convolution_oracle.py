"""The short convolution token by token; shares nothing with the code under test."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    initial: Tensor | None = None,
    documents: Tensor | None = None,
) -> Tensor:
    """Output by the definition, each row and token alone."""
    batch, length, channels = x.shape
    taps, rows = weight.shape[1], []
    for b in range(batch):
        for t in range(length):
            y = torch.zeros(channels, dtype=x.dtype) if bias is None else bias
            for shift in range(taps):
                at = t - shift
                if documents is not None and documents[b, max(at, 0)] != documents[b, t]:
                    continue
                if at >= 0:
                    y = y + weight[:, taps - 1 - shift] * x[b, at]
                elif initial is not None:
                    y = y + weight[:, taps - 1 - shift] * initial[b, at]
            rows.append(y)
    y = torch.stack(rows).view(batch, length, channels)
    return y if initial is None or initial.numel() else y + initial.sum()  # with one tap, it has no numbers


def needed_flops(counted: int, calls: list[Any]) -> int:
    """All that is counted is needed."""
    return counted
