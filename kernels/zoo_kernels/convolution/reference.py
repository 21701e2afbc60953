"""Oracle for the short convolution: every window written out; K times the memory of the input."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo_kernels.convolution.arguments import ConvolutionArguments


def reference_short_convolution(a: ConvolutionArguments) -> Tensor:
    """``y_t = bias + sum_j weight[:, K - 1 - j] x_{t - j}`` over the tokens of t's document, in fp32 or better."""
    taps, dtype = a.weight.shape[1], torch.promote_types(a.x.dtype, torch.float32)
    x, weight = a.x.to(dtype), a.weight.to(dtype)
    if not x.shape[1]:
        return a.x.clone()
    if a.lengths is not None:
        inside = torch.arange(x.shape[1], device=x.device) < a.lengths[:, None]
        x = torch.where(inside[..., None], x, torch.zeros_like(x))
    before = x.new_zeros(x.shape[0], taps - 1, x.shape[2]) if a.initial is None else a.initial.to(dtype)
    windows = torch.cat([before, x], 1).unfold(1, taps, 1)  # (B, T, C, K)
    if a.documents is not None:
        ids = F.pad(a.documents.double()[:, None], (taps - 1, 0), mode="replicate")[:, 0].unfold(1, taps, 1)
        windows = torch.where((ids == ids[..., -1:])[:, :, None], windows, torch.zeros_like(windows))
    y = (windows * weight).sum(-1)
    return (y if a.bias is None else y + a.bias.to(dtype)).to(a.x.dtype)
