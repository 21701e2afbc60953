"""Cache of a window and of the first tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zoo.mixers.caches.base import with_slots
from zoo.mixers.caches.key_values import KeyValueCache
from zoo_kernels.softmax import ring_slots


class RingCache(KeyValueCache):
    """Keys and values of the first ``sink_tokens`` and the latest ``window`` tokens: it stops growing at so many slots.

    A piece takes the slots of earlier tokens that its queries still read: it sees them in order, as they were before.
    """

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
        value_width: int | None = None,
    ) -> None:
        self.window, self.sink_tokens, self.limit = window, sink_tokens, window + sink_tokens
        super().__init__(batch_size, min(capacity, self.limit), heads, width, device, dtype, value_width)

    @property
    def kind(self) -> tuple[Any, ...]:
        """What has to agree with the mixer."""
        return *super().kind, self.window, self.sink_tokens

    def slots(self, length: int) -> int:
        """No more than the ring has."""
        return min(length, self.limit)

    @property
    def wrapped(self) -> bool:
        """Whether a slot may have been taken a second time: positions are then those of a ring."""
        return self._longest >= self.limit

    def oldest(self, count: int) -> tuple[Tensor, Tensor]:
        """Keys and values ``(B, count, G, D or E)`` in the slots that the next tokens take, as they are held.

        Before the ring is full, they are anything finite. ``count`` is at most the window.
        """
        if not self.keys.shape[1]:
            return with_slots(self.keys, count), with_slots(self.values, count)
        rows = torch.arange(len(self.lengths), device=self.lengths.device)[:, None]
        places = self.lengths[:, None] + torch.arange(count, device=rows.device)
        slots = ring_slots(places, self.limit, self.sink_tokens).clamp(max=self.keys.shape[1] - 1)
        return self.keys[rows, slots], self.values[rows, slots]

    def _earlier(self) -> tuple[Tensor, Tensor, Tensor | None] | None:
        """As of the class above: the sink tokens and the keys of the window."""
        if not self._longest:
            return None
        columns, before = self.slots(self._longest), self.lengths[:, None]
        held = before.clamp(max=self.limit)
        place = torch.arange(columns, device=before.device)[None] - (columns - held)
        at = torch.where(place < self.sink_tokens, place, before - (held - place)).clamp(min=0)
        rows = torch.arange(len(before), device=before.device)[:, None]
        slots = ring_slots(at, self.limit, self.sink_tokens)
        return self.keys[rows, slots], self.values[rows, slots], None if self._even else place < 0

    def _write(self, k: Tensor, v: Tensor, lengths: Tensor | None) -> None:
        length = k.shape[1]
        self.reserve(min(self._longest + length, self.limit))
        rows = torch.arange(k.shape[0], device=k.device)[:, None]
        if length == 1:
            slot = ring_slots(self.lengths[:, None], self.limit, self.sink_tokens)
            for held, new in ((self.keys, k), (self.values, v)):
                new = self.packed(new)
                if lengths is not None:
                    new = torch.where((lengths.to(slot) == 0)[:, None, None, None], held[rows, slot], new)
                held[rows, slot] = new
            return
        added = torch.full_like(self.lengths, length) if lengths is None else lengths.to(self.lengths)
        slots = torch.arange(self.keys.shape[1], device=k.device)[None]
        turns = torch.div((self.lengths + added)[:, None] - 1 - slots, self.window, rounding_mode="floor")
        latest = torch.where(slots < self.sink_tokens, slots, slots + turns.clamp(min=0) * self.window)
        source = latest - self.lengths[:, None]
        fresh = ((source >= 0) & (source < added[:, None]))[..., None, None]
        source = source.clamp(0, length - 1)
        self.keys = torch.where(fresh, self.packed(k[rows, source]), self.keys)
        self.values = torch.where(fresh, self.packed(v[rows, source]), self.values)

    def reserve(self, needed: int) -> None:
        """Have at least so many slots; grows by doubling, up to the limit."""
        capacity = self.keys.shape[1]
        if needed > capacity:
            self._extend(min(max(needed, 2 * capacity), self.limit))
