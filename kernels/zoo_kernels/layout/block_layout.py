"""Block-sparse layouts: which blocks of keys each block of queries reads, as tensors only.

A full block is read whole. A partial block is read under the causal rule and, where it has one, a mask of bits: one
bit per pair of tokens, in place of the functions that other formats carry. Lists may be shared by batch rows or heads.
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
    """The same pairs of blocks sorted by query block and by key block; B' is 1 or B, H' is 1 or H.

    Attributes:
        block: tokens of a block: 16, 32, 64 or 128.
        by_query: rows are query blocks, at the position of the token among the keys.
        by_key: rows are key blocks.
        bits: ``(M, block, ceil(block / 32))`` int32: bit ``c % 32`` of word ``[r, c // 32]`` lets query row r read key
            column c. The causal rule holds besides.
        longest: bound of the entries of a query row; None if only the number of rows bounds it.
    """

    block: int
    by_query: Lists
    by_key: Lists
    bits: Tensor
    longest: int | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """B', H' and the blocks of the sequence."""
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
        """Layout of pairs in any order, built on their device without a wait for the host.

        Args:
            batch, head, query, key: ``(N,)`` integers each. Pairs above the diagonal or with a negative key are
                dropped; of equal pairs the first counts.
            masks: ``(N,)`` row of ``bits`` of each pair; -1 (and None) for none: such a pair is read whole, causally.
            bits: as in the attribute.
            batches, heads: B' and H'.
            longest: bound of the pairs of a query block, if known.

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
        """Layout of ``index (B|1, H|1, query blocks, L)``: key blocks of each query block, negative for none.

        Args:
            masks: of the shape of index, and bits: as in :meth:`from_pairs`.

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
        """Layout of ``visible (B|1, H|1, blocks, blocks)`` bool: True where a query block reads a key block.

        Waits for the device. Raises ValueError on a block size or a shape that does not fit.
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
        """Layout of a PyTorch BlockMask, its rule evaluated into bits; what it shows above the diagonal is dropped.

        Waits for the device. Raises ValueError if its blocks are not square or of a size that does not exist here.
        """
        return cls.from_pairs(**block_mask.read(mask))

    def to_block_mask(self, length: int | None = None) -> Any:
        """PyTorch BlockMask of a sequence of ``length`` tokens (default: all blocks)."""
        return block_mask.write(self.block, self.by_query, self.bits, length)

    def packed(self, documents: Tensor) -> BlockLayout:
        """Layout of packed documents, each of which sees what it would see alone.

        Args:
            documents: ``(B, T)`` integer ids, each contiguous. T may not be longer than this layout.
        """
        return BlockLayout(self.block, *pack(self.block, self.by_query, self.bits, self.longest, documents))

    def density(self, length: int) -> float:
        """Causal pairs in listed blocks over all causal pairs of ``length`` tokens, the mean of the lists."""
        lists = self.by_query
        rows = entry_rows(lists)
        query, used = rows % self.shape[2], rows < lists.full.numel()
        sizes = (length - query * self.block).clamp(0, self.block)
        pairs = torch.where(query == lists.blocks, sizes * (sizes + 1) // 2, sizes * self.block)
        total = (pairs * used).sum().item()
        return total / max(self.shape[0] * self.shape[1] * (length * (length + 1) // 2), 1)

    def tensors(self) -> list[Tensor]:
        """What it is made of, for an op: both lists and the bits. Inverse of :meth:`from_tensors`."""
        sides = self.by_query, self.by_key
        return [x for side in sides for x in (side.offsets, side.full, side.blocks, side.masks)] + [self.bits]

    @classmethod
    def from_tensors(cls, block: int, tensors: list[Tensor]) -> BlockLayout:
        """Inverse of :meth:`tensors`."""
        return cls(block, Lists(*tensors[:4]), Lists(*tensors[4:8]), tensors[8])

    def to(self, device: torch.device | str) -> BlockLayout:
        """The same on another device."""
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
