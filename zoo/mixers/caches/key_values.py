"""Keys and values of all tokens."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from zoo.mixers.caches.base import Cache, View, with_slots


class KeyValueCache(Cache):
    """Keys ``(B, capacity, G, D)`` and values ``(B, capacity, G, E)`` of all tokens.

    Row i is valid up to ``lengths[i]``. It grows when it is full. Without a ``value_width`` E is D.
    """

    by_slot: ClassVar[tuple[str, ...]] = ("keys", "values")

    def __init__(
        self,
        batch_size: int,
        capacity: int,
        heads: int,
        width: int,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        value_width: int | None = None,
    ) -> None:
        self.keys = torch.zeros(batch_size, capacity, heads, width, device=device, dtype=dtype)
        self.values = self.keys.new_zeros(batch_size, capacity, heads, width if value_width is None else value_width)
        self.lengths = torch.zeros(batch_size, dtype=torch.long, device=device)
        self._longest = 0  # on the host, so that a step never waits for the device
        self._behind = [0]  # tokens that rows are shorter than the longest, each number once; on the host too

    @property
    def kind(self) -> tuple[Any, ...]:
        """What has to agree with the mixer."""
        return type(self).__name__, *self.keys.shape[2:], self.values.shape[-1]

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of keys and values."""
        return self.keys.dtype

    @property
    def held(self) -> list[int]:
        """Numbers of tokens that rows hold, each once; known without a wait for the device."""
        return [self._longest - behind for behind in self._behind]

    @property
    def wrapped(self) -> bool:
        """Whether slots may have been taken a second time."""
        return False

    @property
    def _even(self) -> bool:
        """Whether all rows have the same length."""
        return len(self._behind) == 1

    def slots(self, length: int) -> int:
        """Slots that so many tokens take."""
        return length

    def in_use(self, name: str) -> int:
        """Slots of the longest row."""
        return self.slots(self._longest)

    def append(self, k: Tensor, v: Tensor, lengths: Tensor | None = None) -> View:
        """Add the keys and values of a piece, and say what its queries read.

        A single token without gradients reads the slots as they lie; any other piece reads columns in order, in which
        its own keys and values have their graph and those before it are constants.

        Args:
            k: keys ``(B, T, G, D)``.
            v: values ``(B, T, G, E)``.
            lengths: ``(B,)`` true lengths of the piece, None for all T.

        Raises:
            ValueError: if the piece has not as many rows as the cache; nothing has been written then.
        """
        self.check_rows(k.shape[0], "k")
        length, before, held, ring = k.shape[1], self.lengths, self._longest, self.wrapped
        alone = length == 1 and not torch.is_grad_enabled()
        earlier = None if alone else self._earlier()
        self._write(k.detach(), v.detach(), lengths)
        self.advance(length, lengths)
        if alone:
            stop = self.slots(held + 1)
            seen = self.lengths if lengths is None else before + 1
            return View(self.keys[:, :stop], self.values[:, :stop], None, seen, ring, in_slots=True)
        if not held:
            return View(k, v, None, self.lengths)
        if earlier is None:
            stop = held + length
            keys, values = self.unpacked(self.keys[:, :stop], k), self.unpacked(self.values[:, :stop], v)
            return View(keys, values, None, self.lengths)
        keys, values, hidden = earlier
        shown = None if hidden is None else torch.cat([~hidden, hidden.new_ones(k.shape[:2])], 1).long()
        keys, values = torch.cat([self.unpacked(keys, k), k], 1), torch.cat([self.unpacked(values, v), v], 1)
        return View(keys, values, shown, self.lengths)

    def recount(self) -> None:
        ends = set(self.lengths.tolist()) or {0}
        self._longest = max(ends)
        self._behind = sorted(self._longest - end for end in ends)

    def advance(self, length: int, lengths: Tensor | None) -> None:
        super().advance(length, lengths)
        if lengths is None:
            self._longest += length
        else:
            self.recount()

    def reserve(self, needed: int) -> None:
        """Have at least so many slots; grows by doubling."""
        capacity = self.keys.shape[1]
        if needed > capacity:
            self._extend(max(needed, 2 * capacity))

    def _extend(self, slots: int) -> None:
        for name in KeyValueCache.by_slot:
            setattr(self, name, with_slots(getattr(self, name), slots))

    def _earlier(self) -> tuple[Tensor, Tensor, Tensor | None] | None:
        """Keys and values in order, all rows ending at one column, and which columns lie before a row, if any do.

        None where there are none, or where they can be read together with the piece once it is written.
        """
        if not self._longest or (self._even and not torch.is_grad_enabled()):
            return None
        if self._even:  # what is written comes behind them
            return self.keys[:, : self._longest], self.values[:, : self._longest], None
        columns = self.slots(self._longest)
        place = torch.arange(columns, device=self.keys.device)[None] + (self.lengths - self._longest)[:, None]
        rows = torch.arange(len(place), device=place.device)[:, None]
        slots = place.clamp(min=0)
        return self.keys[rows, slots], self.values[rows, slots], place < 0

    def _write(self, k: Tensor, v: Tensor, lengths: Tensor | None) -> None:
        length = k.shape[1]
        self.reserve(self._longest + length)
        if self._even:
            span = slice(self._longest, self._longest + length)
            self.keys[:, span], self.values[:, span] = self.packed(k), self.packed(v)
            return
        rows = torch.arange(k.shape[0], device=k.device)[:, None]
        columns = self.lengths[:, None] + torch.arange(length, device=k.device)
        self.keys[rows, columns], self.values[rows, columns] = self.packed(k), self.packed(v)
