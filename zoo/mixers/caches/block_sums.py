"""Keys and values of all tokens, and sums of the keys of each block."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from zoo.mixers.caches.base import View, real_tokens, with_slots
from zoo.mixers.caches.key_values import KeyValueCache


@dataclass(slots=True)
class BlockView(View):
    """A :class:`View` that also says what a single query knows of the blocks before it.

    Attributes:
        sums: ``(B, N, G, D)`` sums of the keys of finished blocks, N of the longest row.
        own: bound of the tokens of the block that is not finished, up to the query.
    """

    sums: Tensor = field(kw_only=True)
    own: int = field(kw_only=True)


class BlockCache(KeyValueCache):
    """Keys and values of all tokens, and sums of the keys of each block, ``(B, blocks, G, D)`` in fp32 or better.

    The last block of a row is the one that its next token belongs to, or the one that was finished last.
    """

    by_slot = (*KeyValueCache.by_slot, "sums")

    def __init__(
        self,
        batch_size: int,
        capacity: int,
        heads: int,
        width: int,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        value_width: int | None = None,
        *,
        block: int,
    ) -> None:
        super().__init__(batch_size, capacity, heads, width, device, dtype, value_width)
        self.block = block
        wide = torch.promote_types(self.keys.dtype, torch.float32)
        self.sums = torch.zeros(batch_size, -(-capacity // block), heads, width, device=device, dtype=wide)

    @property
    def kind(self) -> tuple[Any, ...]:
        """What has to agree with the mixer."""
        return *super().kind, self.block

    def in_use(self, name: str) -> int:
        """Tokens of the longest row, or its blocks."""
        return -(-self._longest // self.block) if name == "sums" else super().in_use(name)

    def append(self, k: Tensor, v: Tensor, lengths: Tensor | None = None) -> BlockView:
        finished, begun = divmod(self._longest, self.block)
        own = begun + 1 if self._even else min(self.block, self._longest + 1)
        view = super().append(k, v, lengths)
        return BlockView(
            view.keys, view.values, view.documents, view.lengths, view.ring, view.in_slots,
            sums=self.sums[:, :finished], own=own,
        )  # fmt: skip

    def reserve(self, needed: int) -> None:
        super().reserve(needed)
        self.sums = with_slots(self.sums, -(-self.keys.shape[1] // self.block))

    def _write(self, k: Tensor, v: Tensor, lengths: Tensor | None) -> None:
        super()._write(k, v, lengths)
        time = torch.arange(k.shape[1], device=k.device)[None]
        k = k.to(self.sums.dtype)
        if lengths is not None:
            k = k.masked_fill(~real_tokens(lengths, k)[..., None, None], 0)
        rows = torch.arange(k.shape[0], device=k.device)[:, None]
        self.sums.index_put_((rows, (self.lengths[:, None] + time) // self.block), k, accumulate=True)
