"""Block-sparse layouts: which blocks of keys each block of queries reads."""

from zoo_kernels.layout.block_layout import BlockLayout
from zoo_kernels.layout.lists import Lists

__all__ = ["BlockLayout", "Lists"]
