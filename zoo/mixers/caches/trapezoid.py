"""The state of Mamba-3, and what it needs to know of the token before."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.mixers.caches.states import StateCache


class TrapezoidCache(StateCache):
    """A state without the last token's own write, and that token.

    Attributes:
        key: ``(B, H, D)``.
        value: ``(B, H, E)``.
        weight: ``(B, H)``, of the token's own write.
        angle: ``(B, H, D / 4)``.
    """

    by_row = (*StateCache.by_row, "key", "value", "weight", "angle")

    def __init__(
        self, shape: tuple[int, int, int, int], device: torch.device | str | None, dtype: torch.dtype | None
    ) -> None:
        super().__init__(shape, device, dtype)
        batch, heads, width, values = shape
        self.key, self.value = self.state.new_zeros(batch, heads, width), self.state.new_zeros(batch, heads, values)
        self.weight = self.state.new_zeros(batch, heads)
        self.angle = self.state.new_zeros(batch, heads, width // 4)

    def shifted(
        self, key: Tensor, value: Tensor, weight: Tensor, angle: Tensor, lengths: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Keys, values and weights of the tokens before those of a piece, whose last token is then remembered.

        Args:
            key: ``(B, T, H, D)``.
            value: ``(B, T, H, E)``.
            weight: ``(B, T, H)``.
            angle: ``(B, T, H, D / 4)``.
            lengths: ``(B,)`` true lengths of the piece, None for all T.
        """
        before, rows = [], torch.arange(len(self.lengths), device=key.device)
        for name, new in (("key", key), ("value", value), ("weight", weight), ("angle", angle)):
            held = getattr(self, name)
            joined = torch.cat([held[:, None].to(new.dtype), new], 1)
            before.append(joined[:, :-1])
            last = joined[:, -1] if lengths is None else joined[rows, lengths.to(self.lengths)]
            setattr(self, name, last.detach().to(held.dtype))
        return before[0], before[1], before[2]
