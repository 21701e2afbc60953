"""Block-sparse layouts: which blocks of keys each block of queries reads, as tensors only.

A full block is read whole. In a partial block the causal rule and, optionally, a bit mask with one bit per pair of
tokens decide; other formats have a Python function here. Layouts may be shared by all batch rows or all heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from zoo_kernels.layout import block_mask
from zoo_kernels.layout.lists import Lists, both_lists, entry_rows, first_of_each
from zoo_kernels.layout.packing import pack

BLOCKS = (16, 32, 64, 128)


@dataclass(frozen=True)
class BlockLayout:
    """A block-sparse layout: the visible pairs of blocks, sorted once by query block and once by key block.

    In shapes, B' is 1 or the batch size B, and H' is 1 or the number of heads H.

    Attributes:
        block: tokens of a block: 16, 32, 64 or 128.
        by_query: for each query block its key blocks. With fewer queries than keys, a query counts at its position
            among the keys.
        by_key: for each key block its query blocks.
        bits: ``(M, block, ceil(block / 32))`` int32: bit ``c % 32`` of word ``[r, c // 32]`` lets query row r read key
            column c. The causal rule holds besides.
        longest: upper bound of the key blocks of one query block; None if only the number of blocks bounds it.
    """

    block: int
    by_query: Lists
    by_key: Lists
    bits: Tensor
    longest: int | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Batch rows B', heads H' and number of blocks in the sequence."""
        batches, heads, rows = self.by_query.full.shape
        return batches, heads, rows

    @classmethod
    def from_pairs(
        cls,
        block: int,
        blocks_in_sequence: int,
        batch: Tensor,
        head: Tensor,
        query: Tensor,
        key: Tensor,
        masks: Tensor | None = None,
        bits: Tensor | None = None,
        *,
        batches: int = 1,
        heads: int = 1,
        longest: int | None = None,
    ) -> BlockLayout:
        """Builds a layout from pairs of blocks in any order, on their device and without a host sync.

        Args:
            block: tokens of a block: 16, 32, 64 or 128.
            blocks_in_sequence: number of blocks in the sequence.
            batch: ``(N,)`` integers, the batch row of each pair.
            head: ``(N,)`` integers, the head of each pair.
            query: ``(N,)`` integers, the query block of each pair.
            key: ``(N,)`` integers, the key block of each pair. Pairs above the diagonal or with a negative key are
                dropped; of equal pairs the first counts.
            masks: ``(N,)`` integers, the row of ``bits`` that masks each pair; -1 for none: such a pair is read whole,
                causally. None: -1 for all.
            bits: bit masks of partial blocks, in the format of the attribute ``bits``.
            batches: number of batch rows B'.
            heads: number of heads H'.
            longest: upper bound of the pairs of one query block, if known.

        Raises:
            ValueError: on a block size or shapes that do not fit.
        """
        pairs = (batch, head, query, key) if masks is None else (batch, head, query, key, masks)
        if len({x.shape for x in pairs}) > 1 or batch.dim() != 1:
            raise ValueError(f"expected arrays of one length, got shapes {[tuple(x.shape) for x in pairs]}.")
        if masks is not None and bits is None:
            raise ValueError("masks are rows of bits: bits must be given with them.")
        bits = _check_bits(block, bits, key.device)
        batch, head, query, key = (x.to(torch.int64) for x in (batch, head, query, key))
        masks = torch.full_like(key, -1) if masks is None else masks.to(torch.int64)
        rows = (batch * heads + head) * blocks_in_sequence + query
        keep = (key >= 0) & (key <= query) & (query < blocks_in_sequence)
        keep = keep & first_of_each(rows * blocks_in_sequence + key, keep)
        partial = (masks >= 0) | (query == key)
        shape = batches, heads, blocks_in_sequence
        return cls(block, *both_lists(shape, rows, key, partial, masks, keep), bits, longest)

    @classmethod
    def from_index(
        cls, index: Tensor, block: int, masks: Tensor | None = None, bits: Tensor | None = None
    ) -> BlockLayout:
        """Builds a layout from the indices of the key blocks that each query block reads.

        Args:
            index: ``(B|1, H|1, query blocks, L)`` integers: key blocks of each query block, negative for none.
            block: tokens of a block: 16, 32, 64 or 128.
            masks: integers of the shape of ``index``: the row of ``bits`` that masks each pair, -1 for none.
            bits: bit masks of partial blocks, in the format of the attribute ``bits``.

        Raises:
            ValueError: on a block size or shapes that do not fit.
        """
        if index.dim() != 4:
            raise ValueError(f"index has shape {tuple(index.shape)}, expected (B or 1, H or 1, query blocks, L).")
        batches, heads, rows, longest = index.shape
        places = [torch.arange(n, device=index.device) for n in (batches, heads, rows)]
        batch, head, query = (x.expand(index.shape).flatten() for x in _spread(places))
        flat = None if masks is None else masks.flatten()
        how: dict[str, Any] = {"batches": batches, "heads": heads, "longest": longest}
        return cls.from_pairs(block, rows, batch, head, query, index.flatten(), flat, bits, **how)

    @classmethod
    def from_blocks(cls, visible: Tensor, block: int) -> BlockLayout:
        """Builds a layout from a dense boolean matrix of blocks. It waits for the device.

        Args:
            visible: ``(B|1, H|1, blocks, blocks)`` bool: True where a query block reads a key block.
            block: tokens of a block: 16, 32, 64 or 128.

        Raises:
            ValueError: on a block size or a shape that does not fit.
        """
        if visible.dim() != 4 or visible.shape[2] != visible.shape[3] or visible.dtype != torch.bool:
            wanted = "(B or 1, H or 1, blocks, blocks) bool"
            raise ValueError(f"visible is {visible.dtype} of shape {tuple(visible.shape)}, expected {wanted}.")
        batches, heads, rows, _ = visible.shape
        longest = int(visible.tril().sum(-1).max()) if visible.numel() else 0
        batch, head, query, key = visible.tril().nonzero().unbind(1)
        return cls.from_pairs(block, rows, batch, head, query, key, batches=batches, heads=heads, longest=longest)

    @classmethod
    def from_block_mask(cls, mask: Any) -> BlockLayout:
        """Converts a PyTorch BlockMask; its mask function is evaluated into bits. It waits for the device.

        Pairs above the diagonal are dropped.

        Raises:
            ValueError: if the blocks of the mask are not square, or not of 16, 32, 64 or 128 tokens.
        """
        return cls.from_pairs(**block_mask.read(mask))

    def to_block_mask(self, length: int | None = None) -> Any:
        """Converts the layout to a PyTorch BlockMask of a sequence of ``length`` tokens (None: all blocks)."""
        return block_mask.write(self.block, self.by_query, self.bits, length)

    def packed(self, documents: Tensor) -> BlockLayout:
        """Returns the layout for packed documents, each of which is read as if it were alone.

        Args:
            documents: ``(B, T)`` integer ids, each contiguous. T may not be longer than this layout.
        """
        return BlockLayout(self.block, *pack(self.block, self.by_query, self.bits, self.longest, documents))

    def density(self, length: int) -> float:
        """Returns the share of causal pairs that lie in visible blocks.

        Pairs of a sequence of ``length`` tokens are counted, averaged over batch rows and heads.
        """
        lists = self.by_query
        rows = entry_rows(lists)
        query, used = rows % self.shape[2], rows < lists.full.numel()
        sizes = (length - query * self.block).clamp(0, self.block)
        pairs = torch.where(query == lists.blocks, sizes * (sizes + 1) // 2, sizes * self.block)
        total = (pairs * used).sum().item()
        return total / max(self.shape[0] * self.shape[1] * (length * (length + 1) // 2), 1)

    def tensors(self) -> list[Tensor]:
        """Returns the tensors of the layout, as a custom op takes them. The inverse is :meth:`from_tensors`."""
        sides = self.by_query, self.by_key
        return [x for side in sides for x in (side.offsets, side.full, side.blocks, side.masks)] + [self.bits]

    @classmethod
    def from_tensors(cls, block: int, tensors: list[Tensor]) -> BlockLayout:
        """Rebuilds a layout from the list that :meth:`tensors` returned."""
        return cls(block, Lists(*tensors[:4]), Lists(*tensors[4:8]), tensors[8])

    def to(self, device: torch.device | str) -> BlockLayout:
        """Copies the layout to a device."""
        moved = BlockLayout.from_tensors(self.block, [x.to(device) for x in self.tensors()])
        return BlockLayout(self.block, moved.by_query, moved.by_key, moved.bits, self.longest)


def _spread(places: list[Tensor]) -> list[Tensor]:
    return [place.view(*(-1 if i == axis else 1 for i in range(4))) for axis, place in enumerate(places)]


def _check_bits(block: int, bits: Tensor | None, device: torch.device) -> Tensor:
    if block not in BLOCKS:
        raise ValueError(f"block={block}: expected one of {', '.join(map(str, BLOCKS))}.")
    words = -(-block // 32)
    if bits is None:
        return torch.zeros(0, block, words, dtype=torch.int32, device=device)
    if bits.shape[1:] != (block, words) or bits.dtype != torch.int32:
        raise ValueError(f"bits is {bits.dtype} of shape {tuple(bits.shape)}, expected int32 (M, {block}, {words}).")
    return bits
