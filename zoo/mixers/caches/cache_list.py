"""Several caches that see the same tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from zoo.mixers.caches.base import Cache

ListType = TypeVar("ListType", bound="CacheList")


class CacheList(Cache):
    """The caches of the parts of a layer, or of the layers of a model.

    Attributes:
        parts: at least one; what they hold is all that this one holds.
    """

    def __init__(self, parts: Sequence[Cache]) -> None:
        self.parts = list(parts)

    @property
    def lengths(self) -> Tensor:  # type: ignore[override]  # of the part that is written last
        """``(B,)`` tokens seen in each row."""
        return self.parts[-1].lengths

    @property
    def kind(self) -> tuple[Any, ...]:
        """Kinds of the caches of all parts."""
        return type(self).__name__, *(part.kind for part in self.parts)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the numbers that the first part holds."""
        return self.parts[0].dtype

    def recount(self) -> None:
        for part in self.parts:
            part.recount()

    def leaves(self) -> list[Cache]:
        """Returns the leaves of all parts."""
        return [leaf for part in self.parts for leaf in part.leaves()]

    def nbytes(self) -> int:
        """Bytes of all parts."""
        return sum(part.nbytes() for part in self.parts)

    def rows(self: ListType, index: Sequence[int] | Tensor) -> ListType:
        at = self._checked(index)
        return type(self)([part.rows(at) for part in self.parts])

    def join(self: ListType, other: ListType) -> ListType:
        self._check_other(other)
        return type(self)([mine.join(theirs) for mine, theirs in zip(self.parts, other.parts)])

    def state_dict(self) -> dict[str, Any]:
        """Returns the states of the parts, by their number."""
        return {str(number): part.state_dict() for number, part in enumerate(self.parts)}

    def check_state(self, state: Mapping[str, Any]) -> None:
        wanted = [str(number) for number in range(len(self.parts))]
        if list(state) != wanted:
            raise ValueError(f"the state has {list(state)}: expected {wanted}, from state_dict() of a cache.")
        for key, part in zip(wanted, self.parts):
            part.check_state(state[key])

    def take_state(self, state: Mapping[str, Any]) -> None:
        for key, part in enumerate(self.parts):
            part.take_state(state[str(key)])
