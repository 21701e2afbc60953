"""Cache of a window and of global tokens."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from zoo.mixers.caches.base import Cache, View, with_slots
from zoo.mixers.caches.global_tokens import GlobalTokens, flagged, gather_tokens
from zoo_kernels.softmax import ring_slots


@dataclass(slots=True)
class GlobalView(View):
    """A :class:`View` that also says which keys are global. In slots, ``lengths`` counts those that a row holds.

    Attributes:
        flags: ``(1 or B, S)``, True for global tokens.
    """

    flags: Tensor = field(kw_only=True)


class GlobalCache(Cache):
    """Keys and values of a document's first tokens, of the latest ones, and of older global tokens.

    Slots ``(B, slots, G, D)`` and ``(B, slots, G, E)``: the first tokens, a ring of the latest ``reach`` tokens, and
    behind it the global tokens that have left the ring, in their order. What a row holds is always at the front of its
    slots.

    Attributes:
        flags: ``(B, slots)``, True for global tokens.
        lengths: ``(B,)`` tokens seen.
        left: ``(B,)`` tokens of the last kind.
        counts: tokens seen of each row, on the host.
        marked: whether separators may have made tokens global.
    """

    by_slot = ("keys", "values", "flags")
    by_row = ("lengths", "left")
    notes = ("marked",)

    def __init__(
        self,
        batch_size: int,
        tokens: GlobalTokens,
        reach: int,
        capacity: int,
        heads: int,
        width: int,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        value_width: int | None = None,
    ) -> None:
        self.tokens, self.reach, self.limit = tokens, reach, reach + tokens.first
        slots = self.slots(capacity)
        self.keys = torch.zeros(batch_size, slots, heads, width, device=device, dtype=dtype)
        self.values = self.keys.new_zeros(batch_size, slots, heads, width if value_width is None else value_width)
        self.flags = torch.zeros(batch_size, slots, dtype=torch.bool, device=device)
        self.lengths = torch.zeros(batch_size, dtype=torch.long, device=device)
        self.left = torch.zeros_like(self.lengths)
        self.counts, self.marked = [0] * batch_size, False
        self._used = 0

    def slots(self, length: int) -> int:
        """Slots that a row of so many tokens needs, if no token is marked."""
        return min(length, self.limit) + self.tokens.count(self.tokens.first, length - self.reach)

    @property
    def kind(self) -> tuple[Any, ...]:
        """What has to agree with the mixer."""
        return type(self).__name__, *self.keys.shape[2:], self.values.shape[-1], self.tokens, self.reach

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of keys and values."""
        return self.keys.dtype

    def in_use(self, name: str) -> int:
        """Slots of the row that fills most."""
        return self._used

    def valid(self) -> Tensor:
        """``(B,)`` slots that a row holds."""
        return self.lengths.clamp(max=self.limit) + self.left

    def distances(self) -> Tensor:
        """``(B, slots in use)``: tokens between the latest one and that of each slot of the first tokens or the ring.

        Where a slot holds nothing, or a token that has left the ring, the number is negative or at least ``reach``.
        """
        slots = torch.arange(self._used, device=self.lengths.device)[None]
        last = self.lengths[:, None] - 1
        distance = last - self._latest(slots, self.lengths)
        return torch.where(slots < self.limit, distance, last + self.reach)

    def append(
        self, k: Tensor, v: Tensor, lengths: Tensor | None = None, *, flags: Tensor, marked: bool = False
    ) -> GlobalView:
        """Add the keys and values of a piece, and say what its queries read.

        A single token without gradients reads the slots as they lie, and asks this cache which of them are which; any
        other piece reads columns in order, as of :class:`KeyValueCache`.

        Args:
            k: keys ``(B, T, G, D)``.
            v: values ``(B, T, G, E)``.
            lengths: ``(B,)`` true lengths of the piece, None for all T.
            flags: ``(1 or B, T)``, True for global tokens.
            marked: whether separators have made some of them so.

        Raises:
            ValueError: if the piece has not as many rows as the cache; nothing has been written then.
        """
        self.check_rows(k.shape[0], "k")
        self.marked |= marked
        flags = flags.expand(k.shape[:2])
        if k.shape[1] > 1 or torch.is_grad_enabled():  # a step has no gradient
            return self._piece(k, v, flags, lengths)
        self._push(self.packed(k.detach()), self.packed(v.detach()), flags, lengths)
        keys, values, flags = (held[:, : self._used] for held in (self.keys, self.values, self.flags))
        return GlobalView(keys, values, None, self.valid(), in_slots=True, flags=flags)

    def recount(self) -> None:
        self.counts = self.lengths.tolist()
        self._measure()

    def advance(self, length: int, lengths: Tensor | None) -> None:
        """Counts a piece as :meth:`Cache.advance` does; ``left`` has to be that behind the piece."""
        super().advance(length, lengths)
        added = [length] * len(self.counts) if lengths is None else lengths.tolist()
        self.counts = [a + b for a, b in zip(self.counts, added)]
        self._measure()

    def _measure(self) -> None:
        if self.marked:
            self._used = max(self.valid().tolist(), default=0)
        else:
            self._used = max(map(self.slots, self.counts), default=0)

    def _piece(self, k: Tensor, v: Tensor, flags: Tensor, lengths: Tensor | None) -> GlobalView:
        length = k.shape[1]
        held, columns = self.valid(), self._used
        if columns:
            slots, hidden = self._in_order(held)
            keys, values = (gather_tokens(x, slots) for x in (self.keys, self.values))
            k, v = torch.cat([self.unpacked(keys, k), k], 1), torch.cat([self.unpacked(values, v), v], 1)
            flags = torch.cat([self.flags.gather(1, slots) & ~hidden, flags], 1)
        shown = None
        if columns and (min(self.counts) < max(self.counts) or self.marked):
            shown = (torch.arange(k.shape[1], device=k.device)[None] >= (columns - held)[:, None]).long()
        added = torch.full_like(held, length) if lengths is None else lengths.to(held)
        begin, end = columns - held, columns + added
        place = torch.arange(k.shape[1], device=k.device)[None]
        leaving = flags & (place >= begin[:, None] + self.tokens.first) & (place < end[:, None] - self.reach)
        self.left = leaving.sum(1)
        self.advance(length, lengths)
        self._store(k.detach(), v.detach(), flags, leaving, begin, end)
        return GlobalView(k, v, shown, self.lengths, flags=flags)

    def _in_order(self, held: Tensor) -> tuple[Tensor, Tensor]:
        """Slots in the order of their tokens, all rows ending at one column, and which columns lie before a row."""
        first, held, left = self.tokens.first, held[:, None], self.left[:, None]
        rank = torch.arange(self._used, device=held.device)[None] - (self._used - held)
        latest = ring_slots((self.lengths[:, None] - held + rank).clamp(min=0), self.limit, first)
        slots = torch.where(rank < first + left, torch.where(rank < first, rank, self.limit - first + rank), latest)
        return slots.clamp(min=0), rank < 0

    def _store(self, k: Tensor, v: Tensor, flags: Tensor, leaving: Tensor, begin: Tensor, end: Tensor) -> None:
        """Keep what must be kept of a sequence in order, whose tokens are at ``begin`` to ``end`` in each row.

        Global tokens that are kept behind the ring are ``leaving (B, S)``.
        """
        first = self.tokens.first
        self._reserve(self._used)
        slots = torch.arange(self.keys.shape[1], device=k.device)[None]
        source = end[:, None] - self.lengths[:, None] + self._latest(slots, self.lengths)
        source = torch.where(slots < first, begin[:, None] + slots, source)
        if self.keys.shape[1] > self.limit:
            gone = flagged(leaving, self.keys.shape[1] - self.limit)
            source[:, self.limit : self.limit + gone.shape[1]] = gone
        source = source.clamp(0, k.shape[1] - 1)
        self.keys, self.values = (self.packed(gather_tokens(x, source)) for x in (k, v))
        self.flags = flags.gather(1, source)

    def _push(self, k: Tensor, v: Tensor, flags: Tensor, lengths: Tensor | None) -> None:
        """Put one token into the ring, and a global one that it drives out behind the ring."""
        self._reserve(max(self._used, self.slots(max(self.counts) + 1)) + self.marked)
        last, rows = self.keys.shape[1] - 1, torch.arange(len(k), device=k.device)
        slot = ring_slots(self.lengths, self.limit, self.tokens.first)
        gone = (self.lengths >= self.limit) & self.flags[rows, slot]
        keep = None if lengths is None else lengths.to(slot) == 0
        gone = gone if keep is None else gone & ~keep
        behind = (self.limit + self.left).clamp(max=last)
        for held, new in ((self.keys, k[:, 0]), (self.values, v[:, 0]), (self.flags, flags[:, 0])):
            wide = (-1, *[1] * (held.dim() - 2))
            if last >= self.limit:
                held[rows, behind] = torch.where(gone.view(wide), held[rows, slot], held[rows, behind])
            held[rows, slot] = new if keep is None else torch.where(keep.view(wide), held[rows, slot], new)
        self.left = self.left + gone
        self.advance(1, lengths)

    def _latest(self, slots: Tensor, lengths: Tensor) -> Tensor:
        """Latest position that each slot of the first tokens or the ring has taken, or will take."""
        turns = torch.div(lengths[:, None] - 1 - slots, self.reach, rounding_mode="floor").clamp(min=0)
        return torch.where(slots < self.tokens.first, slots, slots + turns * self.reach)

    def _reserve(self, needed: int) -> None:
        """Grows by doubling; up to the end of the ring before it grows behind it."""
        capacity = self.keys.shape[1]
        if needed <= capacity:
            return
        slots = max(needed, min(2 * capacity, self.limit) if capacity < self.limit else 2 * capacity)
        for name in self.by_slot:
            setattr(self, name, with_slots(getattr(self, name), slots))
