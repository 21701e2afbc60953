"""Windows of a document in which every token is scored exactly once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Window:
    """One forward pass over a part of a document of n tokens.

    Positions count the document token in front: position 0 is the document token, position i is token i - 1. The inputs
    are the positions ``start .. stop - 1``, the targets ``start + 1 .. stop``; the last ``scored`` targets count.
    """

    start: int
    stop: int
    scored: int

    def __len__(self) -> int:
        return self.stop - self.start


def rolling_windows(tokens: int, length: int, stride: int | None = None) -> Iterator[Window]:
    """Yields windows of at most ``length`` inputs over a document of ``tokens`` tokens.

    The first window starts with the document token. Each further one scores the next ``stride`` tokens (the last one,
    those that are left) and sees as much of the text before them as fits; it has no document token. With stride =
    length these are the rolling windows of lm-evaluation-harness: disjoint, but for the last, which slides back to a
    full context.

    Args:
        tokens: number of tokens of the document, without the document token; no window for 0.
        length: inputs per window.
        stride: tokens scored per window, 1..length; None for ``length``.

    Raises:
        ValueError: on a length below 1 or a stride outside 1..length.
    """
    stride = length if stride is None else stride
    if length < 1:
        raise ValueError(f"length={length}: expected a number >= 1.")
    if not 1 <= stride <= length:
        raise ValueError(f"stride={stride}: expected a number in 1..{length}, the window length.")
    done = 0
    while done < tokens:
        stop = min(tokens, done + stride if done else length)
        yield Window(max(0, stop - length), stop, stop - done)
        done = stop
