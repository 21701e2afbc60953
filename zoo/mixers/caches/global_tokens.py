"""Tokens that all later tokens of a document read.

Which tokens are global follows from the positions of tokens and from whether they are separators, so it never depends
on what comes later.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class GlobalTokens:
    """Rule of which tokens are global; those by position, the first two kinds, are called fixed.

    Attributes:
        first: number of global tokens at the start of a document.
        every: tokens at the positions every - 1, 2 every - 1, ... are global; None for none.
        separators: marked tokens are global.

    Raises:
        ValueError: on numbers out of range.
    """

    first: int
    every: int | None = None
    separators: bool = False

    def __post_init__(self) -> None:
        if self.first < 0:
            raise ValueError(f"global_tokens={self.first}: expected 0 or more of a document's first tokens.")
        if self.every is not None and self.every < 1:
            raise ValueError(f"global_every={self.every}: expected a distance of at least 1 token, or null for none.")

    def flags(self, positions: Tensor, separators: Tensor | None) -> Tensor:
        """Returns ``(1 or B, T)`` bool, True for global tokens, from positions and separators of that shape."""
        flags = positions < self.first
        if self.every is not None:
            flags = flags | ((positions + 1) % self.every == 0)
        return flags | separators if self.separators and separators is not None else flags

    def fixed(self, position: int) -> bool:
        """Returns whether the position alone makes a token global."""
        return position < self.first or (self.every is not None and (position + 1) % self.every == 0)

    def count(self, start: int, stop: int) -> int:
        """Number of fixed global tokens at positions ``start <= position < stop``."""
        return self._below(max(stop, start, 0)) - self._below(max(start, 0))

    def count_spaced(self, start: int, step: int, number: int) -> int:
        """Number of fixed global tokens among the ``number`` positions ``start``, ``start + step``, and so on."""
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
        """Upper bound of the number of global tokens of a row.

        It waits for the device where positions alone give no bound, but not in a compiled graph: then it is T.

        Args:
            flags: ``(1 or B, T)`` bool, True for global tokens.
            start: first position in a document that may be flagged, if ``documents`` is None.
            stop: position behind the last that may be flagged.
            documents: ``(B, T)`` ids of packed documents, or None.
            fixed: flags are those of a sequence from its start on, without separators.
        """
        if fixed and documents is None:
            return self.count(start, stop)
        if fixed and self.first <= start:  # every one of them has so many tokens of its document to itself
            return 0 if self.every is None else flags.shape[1] // self.every
        return flags.shape[1] if torch.compiler.is_compiling() else int(flags.sum(1).max())


def gather_tokens(x: Tensor, places: Tensor) -> Tensor:
    """Gathers tokens of ``x (B, T, H, D)`` at ``places (1 or B, M)`` to ``(B, M, H, D)``."""
    return torch.take_along_dim(x, places[..., None, None], 1)


def flagged(flags: Tensor, most: int) -> Tensor:
    """Places of the flagged tokens of ``(B, T)`` in their order, ``(B, most)``, followed by places of other tokens."""
    return flags.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :most]
