"""Cache of a window and of the first tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zoo.mixers.parts.cache import KeyValueCache
from zoo_kernels.softmax import ring_slots


class RingCache(KeyValueCache):
    """Keys and values of the first ``sink_tokens`` and the latest ``window`` tokens: it stops growing at so many slots.

    What is computed for one token gets all slots, and must be told by :attr:`wrapped` that they are a ring.
    """

    overwrites = True

    def __init__(
        self,
        batch_size: int,
        window: int,
        sink_tokens: int,
        capacity: int,
        heads: int,
        width: int,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        self.window, self.sink_tokens, self.limit = window, sink_tokens, window + sink_tokens
        super().__init__(batch_size, min(capacity, self.limit), heads, width, device, dtype)

    @property
    def kind(self) -> tuple[Any, ...]:
        """What has to agree with the mixer."""
        return *super().kind, self.window, self.sink_tokens

    def _slots(self, length: int) -> int:
        return min(length, self.limit)

    @property
    def wrapped(self) -> bool:
        """Whether a slot may have been taken a second time: positions are then those of a ring."""
        return self._longest >= self.limit

    def _earlier(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """As of the class above: the sink tokens and the keys of the window."""
        if not self._longest:
            return None
        columns, before = self._slots(self._longest), self.lengths[:, None]
        held = before.clamp(max=self.limit)
        place = torch.arange(columns, device=before.device)[None] - (columns - held)
        at = torch.where(place < self.sink_tokens, place, before - (held - place)).clamp(min=0)
        rows = torch.arange(len(before), device=before.device)[:, None]
        slots = ring_slots(at, self.limit, self.sink_tokens)
        return self.keys[rows, slots], self.values[rows, slots], place < 0

    def _write(self, k: Tensor, v: Tensor, lengths: Tensor | None) -> None:
        length = k.shape[1]
        self._reserve(min(self._longest + length, self.limit))
        rows = torch.arange(k.shape[0], device=k.device)[:, None]
        added = torch.full_like(self.lengths, length) if lengths is None else lengths.to(self.lengths)
        if length == 1:
            slot = ring_slots(self.lengths[:, None], self.limit, self.sink_tokens)
            keep = (added == 0)[:, None, None, None]
            for held, new in ((self.keys, k), (self.values, v)):
                slots = slot.clamp(max=held.shape[1] - 1)
                held[rows, slots] = torch.where(keep, held[rows, slots], new.to(held.dtype))
            return
        slots = torch.arange(self.keys.shape[1], device=k.device)[None]
        turns = torch.div((self.lengths + added)[:, None] - 1 - slots, self.window, rounding_mode="floor")
        latest = torch.where(slots < self.sink_tokens, slots, slots + turns.clamp(min=0) * self.window)
        source = latest - self.lengths[:, None]
        fresh = ((source >= 0) & (source < added[:, None]))[..., None, None]
        source = source.clamp(0, length - 1)
        self.keys = torch.where(fresh, k[rows, source].to(self.keys.dtype), self.keys)
        self.values = torch.where(fresh, v[rows, source].to(self.values.dtype), self.values)

    def _reserve(self, needed: int) -> None:
        """Grows by doubling, up to the limit."""
        capacity = self.keys.shape[1]
        if needed > capacity:
            extra = min(max(needed, 2 * capacity), self.limit) - capacity
            pad = self.keys.new_zeros(self.keys.shape[0], extra, *self.keys.shape[2:])
            self.keys, self.values = torch.cat([self.keys, pad], 1), torch.cat([self.values, pad], 1)
