"""What the ops of the short convolution take."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class ConvolutionArguments(NamedTuple):
    """Arguments of the short convolution, as in :func:`zoo_kernels.short_convolution`."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    initial: Tensor | None
    documents: Tensor | None
    lengths: Tensor | None
    backend: str


class ConvolutionUpstream(NamedTuple):
    """What the backward pass takes besides."""

    grad: Tensor
