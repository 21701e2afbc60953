"""Block-sparse layouts."""

from kernels.layout.block_layout import BlockLayout
from kernels.layout.lists import Lists

__all__ = ["BlockLayout", "Lists"]
