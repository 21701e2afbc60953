"""Caches of mixers that also remember the last few inputs of a convolution."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zoo.mixers.caches.states import StateCache


def new_tail(
    batch_size: int, tail: tuple[int, int], device: torch.device | str | None, dtype: torch.dtype | None
) -> Tensor:
    """Inputs ``(B, *tail)`` of tokens before the first: zeros."""
    return torch.zeros(batch_size, *tail, device=device, dtype=dtype or torch.float32)


class Tail:
    """The last inputs of a convolution.

    Attributes:
        tail: ``(B, K - 1, C)``, the oldest first.
    """

    tail: Tensor

    def keep_tail(self, tail: Tensor) -> None:
        """Holds the last inputs, as constants."""
        self.tail = tail.detach().to(self.tail.dtype)


class ConvolvedCache(Tail, StateCache):
    """A state, and the last inputs of a convolution."""

    by_row = (*StateCache.by_row, "tail")

    def __init__(
        self,
        shape: tuple[int, int, int, int],
        tail: tuple[int, int],
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__(shape, device, dtype)
        self.tail = new_tail(shape[0], tail, device, dtype)

    @property
    def kind(self) -> tuple[Any, ...]:
        """What has to agree with the mixer."""
        return *super().kind, *self.tail.shape[1:]
