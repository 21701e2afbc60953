"""States of blocks of the past that double in length, as the digits of a binary counter."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zoo.mixers.caches.base import Cache, with_slots
from zoo.mixers.caches.convolved import Tail, new_tail


class LevelCache(Tail, Cache):
    """A state ``(H, D, E)`` for each binary digit of the tokens seen, in fp32 or better.

    Attributes:
        states: ``(B, levels, H, D, E)``; that at l - 1 is of a block of 2^(l-1) tokens, decayed to the last token, and
            zero where that digit of the row's length is.
    """

    by_slot = ("states",)
    by_row = ("lengths", "tail")

    def __init__(
        self,
        shape: tuple[int, int, int, int],
        levels: int,
        tail: tuple[int, int],
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        wide = torch.promote_types(dtype or torch.float32, torch.float32)
        self.states = torch.zeros(shape[0], levels, *shape[1:], dtype=wide, device=device)
        self.tail = new_tail(shape[0], tail, device, dtype)
        self.lengths = torch.zeros(shape[0], dtype=torch.long, device=device)
        self._longest = 0  # on the host, so that a step never waits for the device

    @property
    def kind(self) -> tuple[Any, ...]:
        """What has to agree with the mixer."""
        return type(self).__name__, *self.states.shape[2:], *self.tail.shape[1:]

    @property
    def dtype(self) -> torch.dtype:
        """Type of the numbers of the states."""
        return self.states.dtype

    def in_use(self, name: str) -> int:
        """Digits of the longest row."""
        return self._longest.bit_length()

    def recount(self) -> None:
        self._longest = int(self.lengths.max()) if len(self.lengths) else 0

    def digits(self) -> Tensor:
        """``(B, levels, 1, 1, 1)`` bool: the binary digits of the lengths, the lowest first."""
        places = torch.arange(self.states.shape[1], device=self.lengths.device)
        return ((self.lengths[:, None] >> places) & 1).bool()[..., None, None, None]

    def before(self, length: int) -> tuple[Tensor, ...]:
        """For each level of a piece, the state ``(B, H, D, E)`` of the left half that its first token is in or behind.

        Where the digit is set that half is complete; else it is what the lower digits hold.
        """
        self.states = with_slots(self.states, (self._longest + length).bit_length())
        return torch.where(self.digits(), self.states, _below(self.states)).unbind(1)

    def replace(self, states: list[Tensor], length: int, lengths: Tensor | None) -> None:
        """Hold the states of left halves behind a piece of ``length`` tokens, or of ``lengths (B,)``, as constants."""
        held = self.states
        self.advance(length, lengths)
        self._longest += length
        made = torch.stack([state.detach().to(self.dtype) for state in states], 1)
        made = torch.where(self.digits(), made, 0)
        if lengths is not None:
            made = torch.where((lengths.to(self.lengths) > 0)[:, None, None, None, None], made, held)
        self.states = made

    def decayed(self, log_decay: Tensor) -> Tensor:
        """The states for the next token, whose ``log_decay (B, H)`` has been applied: ``(B, levels, H, D, E)``."""
        self.states = with_slots(self.states, (self._longest + 1).bit_length())
        return self.states * log_decay.to(self.dtype).exp()[:, None, :, None, None]

    def add(self, states: Tensor, own: Tensor) -> None:
        """Count a token and what it writes, ``own (B, H, D, E)``, to states of :meth:`decayed`, as one to a counter.

        The lowest digit that is then set holds what those below it held, and the token.
        """
        self.advance(1, None)
        self._longest += 1
        digits = self.digits()
        lowest = digits & (digits.cumsum(1) == 1)
        merged = own[:, None] + _below(states)
        self.states = torch.where(digits, torch.where(lowest, merged, states), 0)


def _below(states: Tensor) -> Tensor:
    """Sum of the states of all lower levels, for each: ``(B, levels, H, D, E)``."""
    return torch.cat([torch.zeros_like(states[:, :1]), states[:, :-1]], 1).cumsum(1)
