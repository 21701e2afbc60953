"""Conversion between block layouts and PyTorch's BlockMask, whose mask is a function of token indices."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zoo_kernels.layout.lists import Lists, entry_rows


def read(mask: Any) -> dict[str, Any]:
    """Arguments of :meth:`zoo_kernels.layout.BlockLayout.from_pairs` for a BlockMask.

    Raises:
        ValueError: if its blocks are not square.
    """
    block, columns = mask.BLOCK_SIZE
    if block != columns:
        raise ValueError(f"the BlockMask has blocks of {block} by {columns} tokens, expected square ones.")
    whole = _pairs(mask.full_kv_num_blocks, mask.full_kv_indices)
    partial = _pairs(mask.kv_num_blocks, mask.kv_indices)
    partial = partial[partial[:, 2] >= partial[:, 3]]
    seen = _evaluate(mask, partial, block)
    place = torch.arange(block, device=seen.device)
    causal = (place[:, None] >= place) | (partial[:, 2] > partial[:, 3])[:, None, None]
    ruled = (causal & ~seen).flatten(1).any(1)
    masks = torch.where(ruled, ruled.cumsum(0) - 1, -1)
    batches, heads, rows = mask.kv_num_blocks.shape
    pairs = torch.cat([partial, whole])
    masks = torch.cat([masks, masks.new_full((len(whole),), -1)])
    longest = int(torch.bincount(pairs[:, :3] @ pairs.new_tensor([heads * rows, rows, 1])).max()) if len(pairs) else 0
    bits = write_bits(seen[ruled])
    found = dict(zip(("batch", "head", "query", "key"), pairs.unbind(1)))
    sizes = {"block": block, "blocks_in_sequence": rows, "batches": batches, "heads": heads, "longest": longest}
    return {**found, "masks": masks, "bits": bits, **sizes}


def write_bits(seen: Tensor) -> Tensor:
    """Packs boolean masks ``(M, block, block)`` into words ``(M, block, words)`` int32, 32 bits a word."""
    block = seen.shape[-1]
    parts = seen.unflatten(-1, (-1, min(block, 32))).to(torch.int64)
    words = (parts << torch.arange(min(block, 32), device=seen.device)).sum(-1)
    return ((words ^ 0x80000000) - 0x80000000).to(torch.int32)


def read_bits(bits: Tensor) -> Tensor:
    """Unpacks words ``(..., block, words)`` int32 into boolean masks ``(..., block, block)``.

    It is the inverse of :func:`write_bits`.
    """
    block = bits.shape[-2]
    shifts = torch.arange(min(block, 32), dtype=torch.int32, device=bits.device)
    return ((bits[..., None] >> shifts) & 1).flatten(-2).to(torch.bool)


def table(lists: Lists) -> Tensor:
    """Returns the dense form of a layout, ``(B', H', blocks, blocks)`` int64.

    An entry is the row of ``bits`` that masks the pair of blocks, -1 for the causal rule alone, or -2 for a pair that
    is not visible.
    """
    shape, rows = lists.full.shape, entry_rows(lists)
    count = shape[2]
    flat = torch.full(((lists.full.numel() + 1) * count,), -2, dtype=torch.int64, device=rows.device)
    at = rows * count + lists.blocks
    return flat.scatter_(0, at, lists.masks.to(torch.int64))[: lists.full.numel() * count].view(*shape, count)


def write(block: int, by_query: Lists, bits: Tensor, length: int | None) -> Any:
    """Returns the BlockMask of a layout.

    Args:
        block: tokens of a block.
        by_query: entries of the layout by block of queries.
        bits: masks of the layout.
        length: tokens of the sequence; None for all blocks.
    """
    from torch.nn.attention.flex_attention import BlockMask

    rules = table(by_query)
    batches, heads, count = by_query.full.shape
    length = count * block if length is None else length
    rows = -(-length // block)
    rules = rules[:, :, :rows, :rows]
    whole = (rules == -1) & ~torch.eye(rows, dtype=torch.bool, device=rules.device)
    if not len(bits):
        bits = bits.new_zeros(1, *bits.shape[1:])

    def rule(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        row = rules[b.clamp(max=batches - 1), h.clamp(max=heads - 1), q // block, k // block]
        bit = bits[row.clamp(min=0), q % block, k % block // 32] >> (k % 32).to(torch.int32)
        return (q >= k) & ((row == -1) | ((row >= 0) & ((bit & 1) == 1)))

    lists = (*_lists((rules > -2) & ~whole), *_lists(whole))
    return BlockMask.from_kv_blocks(*lists, BLOCK_SIZE=block, mask_mod=rule, seq_lengths=(length, length))


def _lists(listed: Tensor) -> tuple[Tensor, Tensor]:
    order = listed.to(torch.int8).sort(dim=-1, descending=True, stable=True).indices
    return listed.sum(-1).to(torch.int32), order.to(torch.int32)


def _pairs(counts: Tensor | None, indices: Tensor | None) -> Tensor:
    """Batch row, head, query block and key block of each entry: ``(N, 4)`` int64."""
    if counts is None or indices is None:
        return torch.zeros(0, 4, dtype=torch.int64)
    used = torch.arange(indices.shape[-1], device=indices.device) < counts[..., None]
    return torch.cat([used.nonzero()[:, :3], indices[used][:, None].to(torch.int64)], 1)


def _evaluate(mask: Any, pairs: Tensor, block: int) -> Tensor:
    """What the rule of the BlockMask shows in each pair: ``(N, block, block)`` bool."""
    rule = mask.mask_mod
    for axes in ((None, None, None, 0), (None, None, 0, None), (0, 0, 0, 0)):
        rule = torch.vmap(rule, in_dims=axes)
    place = torch.arange(block, device=pairs.device)
    query, key = ((pairs[:, i, None] * block + place).clamp(max=mask.seq_lengths[i - 2] - 1) for i in (2, 3))
    return rule(pairs[:, 0], pairs[:, 1], query, key) if len(pairs) else pairs.new_zeros(0, block, block).bool()
