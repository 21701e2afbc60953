"""The Triton kernel of the toy family: numbers times the weight of their head."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from zoo_kernels.launch import Table, choose, launch


@triton.jit(do_not_specialize=["heads"])
def scaled_kernel(x, weight, out, heads: tl.int64, WIDTH: tl.constexpr, TILE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, TILE)
    factor = tl.load(weight + row % heads)
    for start in range(0, WIDTH, TILE):
        at = row * WIDTH + start + columns
        seen = start + columns < WIDTH
        tl.store(out + at, tl.load(x + at, mask=seen) * factor, mask=seen)


def scaled(x: torch.Tensor, weight: torch.Tensor, tiles: Table) -> torch.Tensor:
    """``x (.., H, D)`` times ``weight (H,)``, with the tiles of a family."""
    heads, width = x.shape[-2:]
    out = torch.empty_like(x)
    config = choose(tiles, "scaled", x.device, x.dtype, width)
    arrays = x.contiguous(), weight.contiguous(), out
    launch(scaled_kernel, (x.numel() // width,), *arrays, heads, config=config, WIDTH=width)
    return out
