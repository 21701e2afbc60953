"""Block-sparse layouts."""

from zoo_kernels.layout.block_layout import BlockLayout
from zoo_kernels.layout.lists import Lists

__all__ = ["BlockLayout", "Lists"]
