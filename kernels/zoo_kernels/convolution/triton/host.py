"""Host side of the Triton kernels of the short convolution."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zoo_kernels.convolution.arguments import ConvolutionArguments, ConvolutionUpstream
from zoo_kernels.convolution.triton.configs import TABLE
from zoo_kernels.convolution.triton.kernels import convolution_gradients_kernel, convolution_kernel
from zoo_kernels.launch import choose, launch


def _dense(x: Tensor) -> Tensor:
    """The array itself if the channels of a token are neighbors in memory, else a copy."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _alignment(*arrays: Tensor) -> int:
    """How many numbers all strides are multiples of: 16 bytes of them, or 1."""
    unit = 16 // max(x.element_size() for x in arrays)
    return unit if all(step % unit == 0 for x in arrays for step in x.stride()[:2]) else 1


class _Call:
    """What both kernels take of a call: arrays, of which ``x`` stands for those that are not given, and flags."""

    def __init__(self, a: ConvolutionArguments, x: Tensor) -> None:
        self.batch, self.length, self.channels = x.shape
        self.taps = a.weight.shape[1]
        self.weight = a.weight.float().mT.contiguous()
        given = a.initial, a.documents, a.lengths
        self.arrays = [
            x if y is None else y.contiguous() if y.is_floating_point() else y.long().contiguous() for y in given
        ]
        flags = {name: y is not None for name, y in zip(("INITIAL", "DOCUMENTS", "LENGTHS"), given)}
        flags["INITIAL"] = flags["INITIAL"] and self.taps > 1
        self.constants: dict[str, Any] = {"C": self.channels, "TAPS": self.taps, **flags}


def triton_forward(a: ConvolutionArguments) -> Tensor:
    """Computes the output ``(B, T, C)`` in the dtype of x."""
    x = _dense(a.x)
    call, out = _Call(a, x), torch.empty(x.shape, dtype=x.dtype, device=x.device)
    bias = x if a.bias is None else a.bias.float().contiguous()
    config = choose(TABLE, "convolution", x.device, x.dtype, call.channels)
    tiles, blocks = -(-call.channels // config.tiles["TILE"]), -(-call.length // config.tiles["TIME"])
    align = _alignment(x)
    launch(
        convolution_kernel, (tiles * blocks * call.batch,), x, call.weight, bias, *call.arrays, out, call.length,
        blocks, *(step // align for step in x.stride()[:2]), config=config, TILES=tiles, ALIGN=align,
        BIAS=a.bias is not None, **call.constants,
    )  # fmt: skip
    return out


def triton_backward(a: ConvolutionArguments, up: ConvolutionUpstream) -> tuple[Tensor, ...]:
    """Computes gradients of x, the weights, the bias and the inputs before token 0; empty ones of what is not given."""
    x, grad = _dense(a.x), _dense(up.grad)
    call, to_x = _Call(a, x), torch.empty(x.shape, dtype=x.dtype, device=x.device)
    to_initial = to_x if a.initial is None else torch.empty(a.initial.shape, dtype=a.initial.dtype, device=x.device)
    config = choose(TABLE, "convolution_gradients", x.device, x.dtype, call.channels)
    span = config.tiles["TIME"] * config.tiles["SPAN"]
    tiles, blocks = -(-call.channels // config.tiles["TILE"]), -(-(call.length + call.taps - 1) // span)
    to_weight = torch.empty(call.batch * blocks, call.taps, call.channels, device=x.device)
    to_bias = torch.empty(call.batch * blocks, call.channels, device=x.device)
    align = _alignment(x, grad)
    steps = [step // align for array in (x, grad) for step in array.stride()[:2]]
    launch(
        convolution_gradients_kernel, (tiles * blocks * call.batch,), x, call.weight, grad, *call.arrays, to_x,
        to_initial, to_weight, to_bias, call.length, blocks, *steps, config=config, TILES=tiles,
        TAPS_PADDED=1 << (call.taps - 1).bit_length(), ALIGN=align, **call.constants,
    )  # fmt: skip
    return (
        to_x,
        to_weight.sum(0).mT.to(a.weight.dtype).contiguous(),
        x.new_empty(0) if a.bias is None else to_bias.sum(0).to(a.bias.dtype),
        x.new_empty(0) if a.initial is None else to_initial,
    )
