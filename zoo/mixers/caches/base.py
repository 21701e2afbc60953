"""What all caches share: the check of a piece, rows of a batch taken out and put together, and what is saved."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

CacheType = TypeVar("CacheType", bound="Cache")
PLACES = torch.bool, torch.int64  # types of what says where tokens are; it does not count as memory


@dataclass(slots=True)
class View:
    """What the queries of a piece read; good until the cache gets the next piece.

    Attributes:
        keys: ``(B, S, G, D)``.
        values: ``(B, S, G, E)``.
        documents: ``(B, S)`` ids that part the columns before the start of a row from its own; None if there are none.
        lengths: ``(B,)`` tokens seen in each row, those of the piece included.
        ring: whether slots may have been taken a second time, so that positions are those of a ring.
        in_slots: whether keys and values are the slots of the cache as they lie, for one query per row, as
            :func:`zoo_kernels.softmax_attention_step` reads them, and not columns in the order of the tokens that end
            with the piece, as :func:`zoo_kernels.softmax_attention` does.
    """

    keys: Tensor
    values: Tensor
    documents: Tensor | None
    lengths: Tensor
    ring: bool = False
    in_slots: bool = False


def real_tokens(lengths: Tensor, x: Tensor) -> Tensor:
    """``(B, T)`` for a piece ``x (B, T, ...)``: True for tokens, False for padding behind ``lengths (B,)``."""
    return torch.arange(x.shape[1], device=x.device)[None] < lengths.to(x.device)[:, None]


def with_slots(held: Tensor, slots: int) -> Tensor:
    """``held (B, n, ...)`` with at least so many slots; new ones hold zeros."""
    if held.shape[1] >= slots:
        return held
    grown = held.new_zeros(held.shape[0], slots, *held.shape[2:])
    grown[:, : held.shape[1]] = held
    return grown


class Cache(ABC):
    """What a layer remembers of the rows of a batch.

    A subclass names its tensors, whose first dimension is the batch, and says when slots of them are in use. What is
    taken out, put together, saved and loaded follows.

    Attributes:
        lengths: ``(B,)`` tokens seen in each row.
        by_slot: names of tensors ``(B, slots, ...)``, in use from the front on.
        by_row: names of tensors ``(B, ...)`` that are in use as a whole; those that are None are left out.
        notes: names of booleans that are true of a batch if they are true of one of its rows.
    """

    by_slot: ClassVar[tuple[str, ...]] = ()
    by_row: ClassVar[tuple[str, ...]] = ("lengths",)
    notes: ClassVar[tuple[str, ...]] = ()
    lengths: Tensor

    @property
    @abstractmethod
    def kind(self) -> tuple[Any, ...]:
        """What has to agree with the mixer, and with another cache that it is joined with."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """Type of the numbers that are held."""

    def in_use(self, name: str) -> int:
        """Slots of the tensor ``name`` that the longest row fills."""
        raise NotImplementedError(f"{type(self).__name__} has slots and does not say how many of {name} are in use.")

    @abstractmethod
    def recount(self) -> None:
        """Set what the host knows of the lengths, after rows have come or gone; it may wait for the device."""

    def leaves(self) -> list[Cache]:
        """The caches that this one is made of; itself, if it is made of none."""
        return [self]

    def check_piece(self, x: Tensor) -> None:
        """Refuse a piece ``(B, T, ...)`` that is not of the rows, the device and the precision of this cache.

        Raises:
            ValueError: if it is not; nothing has been written then.
        """
        self.check_rows(x.shape[0])
        if self.lengths.device != x.device:
            raise ValueError(f"x is on {x.device} and the cache on {self.lengths.device}: move one of them.")
        if torch.promote_types(x.dtype, self.dtype) not in (x.dtype, self.dtype):
            raise ValueError(
                f"x is of {x.dtype} and the cache of {self.dtype}, of which neither holds the numbers of the other: "
                f"make a cache with new_cache(..., dtype={x.dtype})."
            )

    def check_rows(self, rows: int, name: str = "x") -> None:
        """The first of these checks, for ``name``, which has so many rows."""
        mine = self.lengths.shape[0]
        if rows != mine:
            raise ValueError(f"{name} has {rows} rows and the cache {mine}: make one with new_cache({rows}).")

    def nbytes(self) -> int:
        """Bytes of the numbers in :meth:`state_dict`: of the slots in use, were all rows as long as the longest."""
        return sum(held.nbytes for held in self._held().values() if held.dtype not in PLACES)

    def rows(self: CacheType, index: Sequence[int] | Tensor) -> CacheType:
        """A new cache of some rows, in the order of ``index``; a row may be taken more than once.

        Args:
            index: numbers of rows from 0 on, a sequence or a tensor ``(N,)`` of integers.

        Raises:
            ValueError: on numbers that are no rows of this cache.
        """
        at = self._checked(index)
        made = copy.copy(self)
        for name in self._names():
            setattr(made, name, getattr(self, name).index_select(0, at))
        made.recount()
        return made

    def join(self: CacheType, other: CacheType) -> CacheType:
        """A new cache of the rows of this one and, behind them, those of another of the same mixer.

        Raises:
            ValueError: if the other is of another mixer, precision or device.
        """
        self._check_other(other)
        made = copy.copy(self)
        for name in self._names():
            pair = [getattr(cache, name) for cache in (self, other)]
            if name in self.by_slot:
                pair = [with_slots(held, max(x.shape[1] for x in pair)) for held in pair]
            setattr(made, name, torch.cat(pair))
        for name in self.notes:
            setattr(made, name, getattr(self, name) or getattr(other, name))
        made.recount()
        return made

    def state_dict(self) -> dict[str, Any]:
        """A copy of all that is held, of plain values and tensors, which ``torch.save`` takes."""
        held = {name: tensor.clone() for name, tensor in self._held().items()}
        return {"kind": repr(self.kind), **{name: getattr(self, name) for name in self.notes}, **held}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Hold what another cache of the same mixer held, in place of everything here; the device stays.

        Args:
            state: of :meth:`state_dict`, which is copied.

        Raises:
            ValueError: if it is of another mixer, precision or number of rows; nothing has been written then.
        """
        self.check_state(state)
        self.take_state(state)

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Refuse, with ValueError, what :meth:`load_state_dict` does not take."""
        held = self._held()
        wanted = {"kind", *self.notes, *held}
        if set(state) != wanted:
            raise ValueError(f"the state has {sorted(state)}: expected {sorted(wanted)}, from state_dict() of a cache.")
        if state["kind"] != repr(self.kind):
            raise ValueError(f"the state is of the cache {state['kind']}: expected one of {self.kind!r}.")
        self.check_rows(len(state["lengths"]), "the state")
        for name, mine in held.items():
            if state[name].dtype != mine.dtype:
                raise ValueError(
                    f"{name} of the state is of {state[name].dtype} and the cache of {mine.dtype}: make one with "
                    f"new_cache(..., dtype=...) that holds it as it is."
                )

    def take_state(self, state: Mapping[str, Any]) -> None:
        """Hold a state that has been checked."""
        for name in self.notes:
            setattr(self, name, state[name])
        for name in self._names():
            given = state[name].to(self.lengths.device, copy=True)
            setattr(self, name, with_slots(given, getattr(self, name).shape[1]) if name in self.by_slot else given)
        self.recount()

    def packed(self, x: Tensor) -> Tensor:
        """Keys or values as they are held; numbers of fewer bits would be made here, and only here."""
        return x.to(self.dtype)

    def unpacked(self, held: Tensor, like: Tensor) -> Tensor:
        """Returns what is held as columns beside those of a piece ``like``, the way back of :meth:`packed`."""
        return held.to(like.dtype)

    def advance(self, length: int, lengths: Tensor | None) -> None:
        """Count a piece of ``length`` tokens, or of ``lengths (B,)`` where rows have fewer."""
        self.lengths = self.lengths + (length if lengths is None else lengths.to(self.lengths))

    def _names(self) -> list[str]:
        return [name for name in (*self.by_slot, *self.by_row) if getattr(self, name) is not None]

    def _held(self) -> dict[str, Tensor]:
        """All tensors, without the slots that are not in use."""
        every = {name: getattr(self, name) for name in self._names()}
        return {name: x[:, : self.in_use(name)] if name in self.by_slot else x for name, x in every.items()}

    def _checked(self, index: Sequence[int] | Tensor) -> Tensor:
        at, rows = torch.as_tensor(index, device=self.lengths.device), self.lengths.shape[0]
        at = at.long() if not at.numel() else at
        if at.dim() != 1 or at.dtype == torch.bool or at.is_floating_point():
            raise ValueError(f"index={index!r}: expected numbers of rows, 0 to {rows - 1}.")
        if wrong := [row for row in at.tolist() if not 0 <= row < rows]:
            raise ValueError(f"index={at.tolist()}: expected numbers of rows, 0 to {rows - 1}; not {wrong[0]}.")
        return at.long()

    def _check_other(self, other: Cache) -> None:
        kind = getattr(other, "kind", type(other).__name__)
        if kind != self.kind:
            raise ValueError(f"the other cache is {kind}: expected {self.kind}, one of the same mixer.")
        for what, mine, theirs in (
            ("of", self.dtype, other.dtype),
            ("on", self.lengths.device, other.lengths.device),
        ):
            if mine != theirs:
                raise ValueError(f"the other cache is {what} {theirs} and this one {what} {mine}: expected the same.")
