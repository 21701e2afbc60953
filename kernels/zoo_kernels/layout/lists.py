"""Lists of blocks in compressed sparse row format, built from pairs in any order."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Lists:
    """For each block of one side (queries or keys) the list of blocks of the other side. All arrays are int32.

    Attributes:
        offsets: ``(B', H', rows + 1)``; the entries of row r are ``blocks[offsets[r] : offsets[r + 1]]``, counted over
            all batch rows and heads.
        full: ``(B', H', rows)``; so many entries at the front of a row are read whole, and those after them are
            partial.
        blocks: ``(N,)`` block of the other side. What no row points to is unused capacity.
        masks: ``(N,)`` row of ``bits`` of a partial entry; -1 for the causal rule alone.
    """

    offsets: Tensor
    full: Tensor
    blocks: Tensor
    masks: Tensor


def both_lists(
    shape: tuple[int, int, int],
    rows: Tensor,
    keys: Tensor,
    partial: Tensor,
    masks: Tensor,
    keep: Tensor,
) -> tuple[Lists, Lists]:
    """Sorts pairs of blocks, free of duplicates, by query block and by key block.

    Args:
        shape: batch rows, heads and blocks of the lists.
        rows: ``(N,)`` query block of each pair, counted over batch rows and heads.
        keys: ``(N,)`` key block of each pair.
        partial: ``(N,)`` bool, False for a pair that is read whole.
        masks: ``(N,)`` row of the bits of a partial pair, or -1.
        keep: ``(N,)`` bool, False to drop a pair. Where counting would make the host wait for the device, its place
            stays as unused capacity.

    Returns:
        The lists by query block and the lists by key block.
    """
    if keep.device.type == "cpu" and not torch.compiler.is_compiling():  # nothing to wait for
        chosen = keep.nonzero()[:, 0]
        rows, keys, partial, masks, keep = (x[chosen] for x in (rows, keys, partial, masks, keep))
    count = shape[2]
    turned = torch.div(rows, max(count, 1), rounding_mode="floor") * count + keys
    by_query = _sorted_lists(shape, rows, keys, partial, masks, keep)
    by_key = _sorted_lists(shape, turned, rows % max(count, 1), partial, masks, keep)
    return by_query, by_key


def _sorted_lists(
    shape: tuple[int, int, int], rows: Tensor, others: Tensor, partial: Tensor, masks: Tensor, keep: Tensor
) -> Lists:
    """Entries sorted by row, full ones first, then by block; what is not kept goes to the end."""
    total, count = shape[0] * shape[1] * shape[2], shape[2]
    rows = torch.where(keep, rows, total)
    order = ((rows * 2 + partial) * max(count, 1) + others.clamp(min=0)).argsort()
    entries = torch.zeros(total + 1, dtype=torch.int64, device=rows.device)
    ends = entries.index_add(0, rows, torch.ones_like(rows))[:total].cumsum(0)
    full = entries.index_add(0, rows, (~partial).to(torch.int64))[:total]
    starts = torch.cat([ends.new_zeros(1), ends])[:total].view(shape)
    offsets = torch.cat([starts, ends.view(shape)[..., -1:] if count else ends.new_zeros(*shape[:2], 1)], -1)
    arrays = offsets, full.view(shape), torch.where(keep, others, 0)[order], torch.where(keep, masks, -1)[order]
    return Lists(*(x.to(torch.int32) for x in arrays))


def first_of_each(ids: Tensor, keep: Tensor) -> Tensor:
    """Marks the first of equal ids among those with ``keep`` True."""
    ids = torch.where(keep, ids, -1)
    ordered, order = ids.sort(stable=True)
    first = torch.ones_like(keep)
    first[1:] = ordered[1:] != ordered[:-1]
    return torch.zeros_like(keep).scatter_(0, order, first)


def entry_rows(lists: Lists) -> Tensor:
    """Row of each entry, counted over batch rows and heads, ``(N,)`` int64; unused entries get the number of rows."""
    ends = lists.offsets[..., 1:].flatten().to(torch.int64).contiguous()
    return torch.searchsorted(ends, torch.arange(len(lists.blocks), device=ends.device), right=True)
