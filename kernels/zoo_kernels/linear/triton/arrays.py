"""Arrays as the Triton kernels of linear attention take them, and the tiles for them."""

from __future__ import annotations

from torch import Tensor

from zoo_kernels.launch import Config, choose
from zoo_kernels.linear.triton.configs import TABLE


def dense_rows(x: Tensor) -> Tensor:
    """The array itself if the numbers of a row are neighbors in memory, else a copy."""
    return x if x.stride(-1) == 1 else x.contiguous()


def alignment(*arrays: Tensor) -> int:
    """How many numbers all strides are multiples of: 16 bytes of them, or 1."""
    unit = 16 // max(x.element_size() for x in arrays)
    steps = [step for x in arrays for step in x.stride()[:3]]
    return unit if all(step % unit == 0 for step in steps) else 1


def steps_of(align: int, *arrays: Tensor) -> list[int]:
    """Strides of batch, token and head of each array in units of ``align`` numbers."""
    return [step // align for x in arrays for step in x.stride()[:3]]


def padded(width: int) -> int:
    """The next power of 2, at least 16: columns of a tile that holds whole rows."""
    return max(16, 1 << (width - 1).bit_length())


def config_of(name: str, like: Tensor, *widths: int) -> Config:
    """Tiles of a kernel for arrays of the type and on the device of ``like``, the widest of them so wide."""
    return choose(TABLE, name, like.device, like.dtype, max(widths))
