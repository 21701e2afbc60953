"""Cache of a window and of global tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from zoo.mixers.parts.global_tokens import GlobalTokens, flagged, gather_tokens
from zoo_kernels.softmax import ring_slots

Whole = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor | None], Tensor]  # q, k, v, flags (B, Tk), documents (B, Tk)
Step = Callable[[Tensor, Tensor, Tensor], Tensor]  # q (B, H, D), and keys and values of the slots in use


class GlobalCache:
    """Keys and values of a document's first tokens, of the latest ones, and of older global tokens.

    Slots ``(B, slots, G, D)`` and ``(B, slots, G, E)``: the first tokens, a ring of the latest ``reach`` tokens, and
    behind it the global tokens that have left the ring, in their order. What a row holds is always at the front of its
    slots.

    Attributes:
        flags: ``(B, slots)``, True for global tokens.
        lengths: ``(B,)`` tokens seen.
        left: ``(B,)`` global tokens that have left the ring.
        rows: tokens seen of each row, on the host.
        marked: whether marks may have made tokens global.
    """

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
        self.rows, self.marked = [0] * batch_size, False
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

    def nbytes(self) -> int:
        """Bytes of the slots in use."""
        return sum(held[:, : self._used].numel() * held.element_size() for held in (self.keys, self.values))

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

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        flags: Tensor,
        lengths: Tensor | None,
        marked: bool,
        whole: Whole,
        step: Step,
    ) -> Tensor:
        """Adds the piece's keys and values and returns the attention of its queries, ``(B, T, H, E)``.

        Args:
            q: queries ``(B, T, H, D)``.
            k: keys ``(B, T, G, D)``.
            v: values ``(B, T, G, E)``.
            flags: ``(1 or B, T)``, True for global tokens.
            lengths: ``(B,)`` true lengths of the piece, None for all T.
            marked: whether marks have made some of the tokens global.
            whole: attention of a piece over what is kept of the sequence, all in order and aligned at the end.
            step: attention of one query over the slots; it asks this cache which of them are which.
        """
        self.marked |= marked
        added = [q.shape[1]] * len(self.rows) if lengths is None else lengths.tolist()
        advance = torch.full_like(self.lengths, q.shape[1]) if lengths is None else lengths.to(self.lengths)
        flags = flags.expand(q.shape[:2])
        if q.shape[1] > 1 or torch.is_grad_enabled():  # a step has no gradient
            return self._piece(q, k, v, flags, advance, added, whole)
        self._push(k.detach(), v.detach(), flags, advance)
        self._advance(added)
        return step(q[:, 0], self.keys[:, : self._used], self.values[:, : self._used])[:, None]

    def _piece(
        self, q: Tensor, k: Tensor, v: Tensor, flags: Tensor, advance: Tensor, added: list[int], whole: Whole
    ) -> Tensor:
        held, columns = self.valid(), self._used
        if columns:
            slots, hidden = self._in_order(held)
            keys, values = (gather_tokens(x, slots) for x in (self.keys, self.values))
            k, v = torch.cat([keys.to(k.dtype), k], 1), torch.cat([values.to(v.dtype), v], 1)
            flags = torch.cat([self.flags.gather(1, slots) & ~hidden, flags], 1)
        shown = torch.arange(k.shape[1], device=k.device)[None] >= (columns - held)[:, None]
        even = not columns or (min(self.rows) == max(self.rows) and not self.marked)
        output = whole(q, k, v, flags, None if even else shown.long())
        self._store(k.detach(), v.detach(), flags, columns - held, columns + advance, advance, added)
        return output

    def _in_order(self, held: Tensor) -> tuple[Tensor, Tensor]:
        """Slots in the order of their tokens, all rows ending at one column, and which columns lie before a row."""
        first, held, left = self.tokens.first, held[:, None], self.left[:, None]
        rank = torch.arange(self._used, device=held.device)[None] - (self._used - held)
        latest = ring_slots((self.lengths[:, None] - held + rank).clamp(min=0), self.limit, first)
        slots = torch.where(rank < first + left, torch.where(rank < first, rank, self.limit - first + rank), latest)
        return slots.clamp(min=0), rank < 0

    def _store(
        self, k: Tensor, v: Tensor, flags: Tensor, begin: Tensor, end: Tensor, advance: Tensor, added: list[int]
    ) -> None:
        """Keep what must be kept of a sequence in order, whose tokens are at ``begin`` to ``end`` in each row."""
        first = self.tokens.first
        self.lengths = self.lengths + advance
        place = torch.arange(k.shape[1], device=k.device)[None]
        leaving = flags & (place >= begin[:, None] + first) & (place < end[:, None] - self.reach)
        self.left = leaving.sum(1)
        self._advance(added)
        self._reserve(self._used)
        slots = torch.arange(self.keys.shape[1], device=k.device)[None]
        source = end[:, None] - self.lengths[:, None] + self._latest(slots, self.lengths)
        source = torch.where(slots < first, begin[:, None] + slots, source)
        if self.keys.shape[1] > self.limit:
            gone = flagged(leaving, self.keys.shape[1] - self.limit)
            source[:, self.limit : self.limit + gone.shape[1]] = gone
        source = source.clamp(0, k.shape[1] - 1)
        self.keys, self.values = (gather_tokens(x, source).to(self.keys.dtype) for x in (k, v))
        self.flags = flags.gather(1, source)

    def _push(self, k: Tensor, v: Tensor, flags: Tensor, advance: Tensor) -> None:
        """Put one token into the ring, and a global one that it drives out behind the ring."""
        self._reserve(max(self._used, self.slots(max(self.rows) + 1)) + self.marked)
        last, rows = self.keys.shape[1] - 1, torch.arange(len(k), device=k.device)
        slot, keep = ring_slots(self.lengths, self.limit, self.tokens.first).clamp(max=last), advance == 0
        gone = (self.lengths >= self.limit) & self.flags[rows, slot] & ~keep
        behind = (self.limit + self.left).clamp(max=last)
        for held, new in ((self.keys, k[:, 0]), (self.values, v[:, 0]), (self.flags, flags[:, 0])):
            wide = (-1, *[1] * (held.dim() - 2))
            if last >= self.limit:
                held[rows, behind] = torch.where(gone.view(wide), held[rows, slot], held[rows, behind])
            held[rows, slot] = torch.where(keep.view(wide), held[rows, slot], new.to(held.dtype))
        self.lengths, self.left = self.lengths + advance, self.left + gone

    def _latest(self, slots: Tensor, lengths: Tensor) -> Tensor:
        """Latest position that each slot of the first tokens or the ring has taken, or will take."""
        turns = torch.div(lengths[:, None] - 1 - slots, self.reach, rounding_mode="floor").clamp(min=0)
        return torch.where(slots < self.tokens.first, slots, slots + turns * self.reach)

    def _advance(self, added: list[int]) -> None:
        self.rows = [a + b for a, b in zip(self.rows, added)]
        self._used = int(self.valid().max()) if self.marked else max(map(self.slots, self.rows))

    def _reserve(self, needed: int) -> None:
        """Grows by doubling; up to the end of the ring before it grows behind it."""
        capacity = self.keys.shape[1]
        if needed <= capacity:
            return
        extra = max(needed, min(2 * capacity, self.limit) if capacity < self.limit else 2 * capacity) - capacity
        for name in ("keys", "values", "flags"):
            held = getattr(self, name)
            setattr(self, name, torch.cat([held, held.new_zeros(held.shape[0], extra, *held.shape[2:])], 1))
