"""Tokens that all later tokens of a document read.

Which tokens are global follows from positions and marks of the tokens themselves, so it never depends on what comes
later.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class GlobalTokens:
    """Which tokens are global; those of the first two kinds are called fixed.

    Attributes:
        first: so many tokens at the start of a document.
        every: the tokens at the positions every - 1, 2 every - 1, ...; None for none.
        separators: the tokens that are marked.

    Raises:
        ValueError: on numbers that cannot be.
    """

    first: int
    every: int | None = None
    separators: bool = False

    def __post_init__(self) -> None:
        if self.first < 0:
            raise ValueError(f"global_tokens={self.first}: expected 0 or more of a document's first tokens.")
        if self.every is not None and self.every < 1:
            raise ValueError(f"global_every={self.every}: expected a distance of at least 1 token, or null for none.")

    def flags(self, positions: Tensor, marks: Tensor | None) -> Tensor:
        """``(1 or B, T)`` bool: True for global tokens, from positions in their documents and marks of that shape."""
        flags = positions < self.first
        if self.every is not None:
            flags = flags | ((positions + 1) % self.every == 0)
        return flags | marks if self.separators and marks is not None else flags

    def fixed(self, position: int) -> bool:
        """Whether the position alone makes a token global."""
        return position < self.first or (self.every is not None and (position + 1) % self.every == 0)

    def count(self, start: int, stop: int) -> int:
        """Fixed ones at ``start <= position < stop``."""
        return self._below(max(stop, start, 0)) - self._below(max(start, 0))

    def count_spaced(self, start: int, step: int, number: int) -> int:
        """Fixed ones among so many positions, ``start >= 0``, ``start + step``, and so on."""
        among = min(max(-(-(self.first - start) // step), 0), number)
        if self.every is None:
            return among
        start, number = start + among * step, number - among
        common = math.gcd(step, self.every)
        if (start + 1) % common:  # no multiple of ``every`` among the rest
            return among
        turn = self.every // common  # every so many of the rest is one: the first solves start + 1 + i step = 0
        before = -((start + 1) // common) * pow(step // common, -1, turn) % turn
        return among + max(-(-(number - before) // turn), 0)

    def _below(self, stop: int) -> int:
        first = min(stop, self.first)
        return first if self.every is None else first + stop // self.every - first // self.every

    def most(self, flags: Tensor, start: int, stop: int, documents: Tensor | None, fixed: bool) -> int:
        """Bound of the global tokens of a row among ``flags (1 or B, T)``, at least as far as they are counted.

        It waits for the device where positions alone do not bound them, but not in a compiled graph: then it is T.

        Args:
            start, stop: positions in a document without which, if ``documents`` is None, no token is flagged.
            fixed: flags are those of a sequence from its start on, without marks.
        """
        if fixed and documents is None:
            return self.count(start, stop)
        if fixed and self.first <= start:  # every one of them has so many tokens of its document to itself
            return 0 if self.every is None else flags.shape[1] // self.every
        return flags.shape[1] if torch.compiler.is_compiling() else int(flags.sum(1).max())


def gather_tokens(x: Tensor, places: Tensor) -> Tensor:
    """Tokens of ``x (B, T, H, D)`` at ``places (1 or B, M)`` -> ``(B, M, H, D)``."""
    return torch.take_along_dim(x, places[..., None, None], 1)


def flagged(flags: Tensor, most: int) -> Tensor:
    """Places of the flagged tokens of ``(B, T)`` in their order, ``(B, most)``; places of others behind them."""
    return flags.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :most]
