"""The short convolution as custom ops, and its entry among the families.

The PyTorch form adds K shifted and weighted copies, block by block of what the cache holds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from zoo_kernels.chunks import CACHE_ELEMENTS
from zoo_kernels.convolution.arguments import ConvolutionArguments, ConvolutionUpstream
from zoo_kernels.convolution.reference import reference_short_convolution
from zoo_kernels.convolution.triton.configs import ANY, TABLE
from zoo_kernels.family import Family, Op, register

GRADIENTS = ("x", "weight", "bias", "initial")

CONVOLUTION = register(
    Family(
        "convolution",
        "short convolution",
        widths=dict.fromkeys((torch.float32, torch.float16, torch.bfloat16), ANY),
        tiles=TABLE,
        calls="zoo_kernels.convolution.calls",
        cases="zoo_kernels.convolution.bench_cases",
    )
)


class _Blocks:
    """The blocks of a call: tokens with their ``K - 1`` predecessors or successors, in the computing precision."""

    def __init__(self, a: ConvolutionArguments) -> None:
        self.a, self.length, self.reach = a, a.x.shape[1], a.weight.shape[1] - 1
        self.dtype = torch.promote_types(a.x.dtype, torch.float32)
        self.taps = a.weight.to(self.dtype).mT.contiguous()  # (K, C)
        self.ids = None
        if a.documents is not None:
            self.ids = torch.cat([a.documents[:, :1].expand(-1, self.reach), a.documents], 1)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        step = max(CACHE_ELEMENTS // max(self.a.x.shape[0] * self.a.x.shape[2], 1), self.reach, 16)
        return ((start, min(start + step, self.length)) for start in range(0, self.length, step))

    def rows(self, array: Tensor, start: int, stop: int, before: Tensor | None = None) -> Tensor:
        """Tokens ``start .. stop`` of ``(B, T, C)``; those before 0 are ``before``, others beyond the rows are 0."""
        inside = array[:, max(start, 0) : min(stop, self.length)].to(self.dtype)
        if self.a.lengths is not None:
            time = torch.arange(max(start, 0), max(start, 0) + inside.shape[1], device=array.device)
            inside = inside.masked_fill((time >= self.a.lengths[:, None])[..., None], 0)
        if start < 0:
            missing = inside.new_zeros(array.shape[0], -start, array.shape[2])
            inside = torch.cat([missing if before is None else before.to(self.dtype), inside], 1)
        if stop > self.length:
            inside = torch.cat([inside, inside.new_zeros(array.shape[0], stop - self.length, array.shape[2])], 1)
        return inside

    def within(self, start: int, stop: int, shift: int) -> Tensor | None:
        """Whether tokens ``start .. stop`` and those ``shift`` before are of one document ``(B, n, 1)``."""
        if self.ids is None or not shift:
            return None
        now = self.ids[:, start + self.reach : stop + self.reach]
        earlier = self.ids[:, start + self.reach - shift : stop + self.reach - shift]
        return (now == earlier).to(self.dtype)[..., None]


def _torch_forward(a: ConvolutionArguments) -> Tensor:
    blocks, output = _Blocks(a), torch.empty(a.x.shape, dtype=a.x.dtype, device=a.x.device)
    reach = blocks.reach
    for start, stop in blocks:
        rows = blocks.rows(a.x, start - reach, stop, a.initial)
        y = rows[:, reach:] * blocks.taps[reach]
        if a.bias is not None:
            y += a.bias.to(y.dtype)
        for shift in range(1, reach + 1):
            earlier, mask = rows[:, reach - shift : rows.shape[1] - shift], blocks.within(start, stop, shift)
            y.addcmul_(earlier if mask is None else earlier * mask, blocks.taps[reach - shift])
        output[:, start:stop] = y
    return output


def _torch_backward(a: ConvolutionArguments, up: ConvolutionUpstream) -> tuple[Tensor, ...]:
    blocks, reach = _Blocks(a), a.weight.shape[1] - 1
    to_x = torch.empty(a.x.shape, dtype=a.x.dtype, device=a.x.device)
    to_taps, to_bias = torch.zeros_like(blocks.taps), blocks.taps.new_zeros(a.x.shape[2])
    to_initial = blocks.taps.new_zeros(a.x.shape[0], reach, a.x.shape[2])
    for start, stop in blocks:
        grad, rows = blocks.rows(up.grad, start, stop + reach), blocks.rows(a.x, start, stop)
        to_bias += grad[:, : stop - start].sum((0, 1))
        found = grad[:, : stop - start] * blocks.taps[reach]
        to_taps[reach] += (grad[:, : stop - start] * rows).sum((0, 1))
        for shift in range(1, reach + 1):
            later = grad[:, shift : shift + stop - start]
            last = min(stop + shift, blocks.length)
            mask = blocks.within(start + shift, last, shift) if last > start + shift else None
            if mask is not None:
                later = later[:, : last - start - shift] * mask
                later = torch.nn.functional.pad(later, (0, 0, 0, stop - start - later.shape[1]))
            found.addcmul_(later, blocks.taps[reach - shift])
            to_taps[reach - shift] += (later * rows).sum((0, 1))
        to_x[:, start:stop] = found
    _from_initial(blocks, up.grad, to_initial, to_taps)
    grads = to_x, to_taps.mT.contiguous(), to_bias, to_initial
    given = a.x, a.weight, a.bias, a.initial
    return tuple(a.x.new_empty(0) if x is None else g.to(x.dtype) for x, g in zip(given, grads))


def _from_initial(blocks: _Blocks, grad: Tensor, to_initial: Tensor, to_taps: Tensor) -> None:
    """What the first tokens read of the inputs before token 0."""
    reach, before = blocks.reach, blocks.a.initial
    if before is None or not reach:
        return
    first, before = blocks.rows(grad, 0, reach), before.to(blocks.dtype)
    for shift in range(1, reach + 1):
        n = min(shift, blocks.length)
        now, mask = first[:, :n], blocks.within(0, n, shift)
        now = now if mask is None else now * mask
        to_initial[:, reach - shift : reach - shift + n].addcmul_(now, blocks.taps[reach - shift])
        to_taps[reach - shift] += (now * before[:, reach - shift : reach - shift + n]).sum((0, 1))


def _triton_forward(a: ConvolutionArguments) -> Tensor:
    from zoo_kernels.convolution.triton.host import triton_forward

    return triton_forward(a)


def _triton_backward(a: ConvolutionArguments, up: ConvolutionUpstream) -> tuple[Tensor, ...]:
    from zoo_kernels.convolution.triton.host import triton_backward

    return triton_backward(a, up)


def _fake_backward(a: ConvolutionArguments, up: ConvolutionUpstream) -> tuple[Tensor, ...]:
    given = a.x, a.weight, a.bias, a.initial
    return tuple(a.x.new_empty(0) if x is None else x.new_empty(x.shape) for x in given)


convolution_forward = Op(
    CONVOLUTION,
    "forward",
    ConvolutionArguments,
    forms={"torch": _torch_forward, "triton": _triton_forward, "reference": reference_short_convolution},
    fake=lambda a: a.x.new_empty(a.x.shape),
    flops=lambda a: 2 * math.prod(a.x) * a.weight[1],
)
convolution_backward = Op(
    CONVOLUTION,
    "backward",
    ConvolutionArguments,
    ConvolutionUpstream,
    outputs=len(GRADIENTS),  # empty ones of what was not given
    forms={"torch": _torch_backward, "triton": _triton_backward},
    fake=_fake_backward,
    flops=lambda a, up: 4 * math.prod(a.x) * a.weight[1],
)


def _differentiate(
    a: ConvolutionArguments, kept: list[Tensor], grads: tuple[Tensor | None, ...], wanted: set[str]
) -> dict[str, Tensor]:
    assert grads[0] is not None
    return dict(zip(GRADIENTS, convolution_backward(a, ConvolutionUpstream(grads[0]))))


convolution_forward.differentiate(_differentiate)
