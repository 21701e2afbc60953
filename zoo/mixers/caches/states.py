"""States of constant size."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from zoo.mixers.caches.base import Cache


class StateCache(Cache):
    """State of constant size, in fp32 or better, and the number of tokens seen.

    Attributes:
        state: ``(B, H, D, E)``.
        normalizer: ``(B, H, D)``, for normalized attention.
        lengths: ``(B,)``.
    """

    by_row: ClassVar[tuple[str, ...]] = ("state", "normalizer", "lengths")

    def __init__(
        self,
        shape: tuple[int, int, int, int],
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        normalize: bool = False,
    ) -> None:
        wide = torch.promote_types(dtype or torch.float32, torch.float32)
        self.state = torch.zeros(shape, dtype=wide, device=device)
        self.normalizer = self.state.new_zeros(shape[:3]) if normalize else None
        self.lengths = torch.zeros(shape[0], dtype=torch.long, device=device)

    @property
    def kind(self) -> tuple[Any, ...]:
        """What has to agree with the mixer."""
        return type(self).__name__, *self.state.shape[1:], self.normalizer is not None

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the state."""
        return self.state.dtype

    def recount(self) -> None:
        """Does nothing, since no size depends on the lengths."""

    def replace(self, state: Tensor, normalizer: Tensor | None = None) -> None:
        """Hold the state behind a piece, ``(B, H, D, E)`` and ``(B, H, D)``, as a constant."""
        self.state = state.detach().to(self.dtype)
        if normalizer is not None:
            self.normalizer = normalizer.detach().to(self.dtype)


class MaximumCache(StateCache):
    """A normalized state in units of ``exp(maximum)``.

    Attributes:
        maximum: ``(B, H)`` largest exponent of the keys seen, -inf before the first.
    """

    by_row = (*StateCache.by_row, "maximum")

    def __init__(
        self, shape: tuple[int, int, int, int], device: torch.device | str | None, dtype: torch.dtype | None
    ) -> None:
        super().__init__(shape, device, dtype, normalize=True)
        self.maximum = torch.full_like(self.state[:, :, 0, 0], -torch.inf)
