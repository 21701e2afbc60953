"""What zoo_kernels.bench times of the short convolution."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from zoo_kernels.bench import rows, timed
from zoo_kernels.bench.bench import FLA, Bench
from zoo_kernels.bench.case import Case, Forms
from zoo_kernels.bench.peers import from_library
from zoo_kernels.bench.record import BOTH, FORWARD, Shape
from zoo_kernels.bench.registry import Item, piece
from zoo_kernels.bench.timed import Flat, Ratio, Timed
from zoo_kernels.convolution.api import short_convolution

TAPS = 4
ARRAYS = {FORWARD: 2, BOTH: 5}  # x y, and once more x with dy dx
OVER = tuple(Ratio(f"over {who}", who) for who in ("conv1d", FLA))


def convolution(shape: Shape) -> Case:
    """A call over whole sequences of as many channels as all heads have, which gives the output alone."""

    def call(**x: Any) -> Tensor:
        return short_convolution(**x)[0]

    channels = shape.heads * shape.width
    rows = shape.batch, shape.length, channels
    sizes = {"x": rows, "weight": (channels, TAPS), "upstream": rows}
    return Case("convolution", shape, call, sizes, followed=("x", "weight"))


def conv1d(x: Tensor, weight: Tensor) -> Tensor:
    """PyTorch's convolution, with a group for each channel, which takes channels before tokens."""
    y = F.conv1d(x.mT, weight[:, None], padding=TAPS - 1, groups=x.shape[2])
    return y[..., : x.shape[1]].mT


def peers(bench: Bench) -> Forms:
    """PyTorch's and, on a GPU, that of flash-linear-attention."""
    found: Forms = {"conv1d": conv1d}
    if bench.device.type == "cuda" and (function := from_library(bench, FLA, "fla.modules.conv.causal_conv1d")):
        found[FLA] = lambda x, weight: function(x, weight)[0]
    return found


@piece("cuda", "convolution")
def on_a_gpu(bench: Bench) -> Iterator[Timed]:
    """Two contexts: share of the bandwidth."""
    for shape in rows.all_contexts(bench)[::9]:
        nbytes = shape.numbers * bench.dtype.itemsize
        moved = timed.of_memory(bench, {way: count * nbytes for way, count in ARRAYS.items()})
        yield Timed(convolution(shape), lambda: peers(bench), (BOTH, FORWARD), (moved,), OVER)


@piece("cpu", "convolution")
def on_a_cpu(bench: Bench) -> Iterator[Item]:
    """Forward and backward over contexts."""
    shapes = [Shape(1, length, 8, 64) for length in bench.pick([512, 2048, 8192, 65_536], [], [512, 2048])]
    for shape in shapes:
        time = timed.microseconds("per token", shape.length)
        yield Timed(convolution(shape), lambda: peers(bench), (BOTH,), (time,), OVER)
    yield Flat("convolution", shapes[1:], {BOTH: None})
