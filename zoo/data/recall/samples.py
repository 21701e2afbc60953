"""Samples of recall tasks: token sequences with answers at known places, determined by their key alone."""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import dataclass
from typing import Any

import numpy as np

from zoo.data.documents import DataError

SPLITS = ("train", "eval")
ATTEMPTS = 256  # half of all draws belong to a split, so that so many misses do not happen


class RecallError(DataError):
    """Raised for a sample that cannot be made as asked; the message says what would be possible."""


@dataclass(frozen=True)
class Question:
    """A question at the end of a context.

    Attributes:
        prompt: text up to the answer, without a space at its end.
        answer: the right answer, with the space before it.
        others: the wrong values that the context offers, each written like ``answer``.
        references: texts that count as right when an answer is generated; empty for the answer itself.
    """

    prompt: str
    answer: str
    others: tuple[str, ...] = ()
    references: tuple[str, ...] = ()


@dataclass(frozen=True)
class Answer:
    """Place of an answer in its sample: ``tokens[start:stop]``.

    Attributes:
        start: index of the first token.
        stop: index behind the last token.
        others: token ids of the wrong values of the context.
        references: texts that count as right.
    """

    start: int
    stop: int
    others: tuple[tuple[int, ...], ...] = ()
    references: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sample:
    """A question with its context, as tokens.

    Attributes:
        id: the same for the same question, whatever the model.
        tokens: ``(length,)`` int64, the document token first.
        answers: in order; each can be inferred from the tokens before it.
        depth: depth of the fact that is asked for, 0..1.
        truncated: number of tokens of a given text that were left out to make it fit.
        labels: ``(length,)`` int64, what is asked for at each place where that is not the token that stands there, so
            that no answer is ever read; answers then have one token each. None: the tokens themselves.
        chance: share of the answers that a blind guess gets right, None where that is not known.
    """

    id: str
    tokens: np.ndarray
    answers: tuple[Answer, ...]
    depth: float | None = None
    truncated: int = 0
    labels: np.ndarray | None = None
    chance: float | None = None

    @property
    def targets(self) -> np.ndarray:
        """``(length,)`` int64: what is to be predicted at each place from the tokens before it."""
        return self.tokens if self.labels is None else self.labels

    def __len__(self) -> int:
        return len(self.tokens)


def digest(*parts: Any) -> int:
    """Returns 128 bits of the SHA-256 of JSON-like values, the same on every machine."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "big")


def sample_rng(*key: Any) -> random.Random:
    """Returns the random generator of one sample, a function of its key, so that samples are independent."""
    return random.Random(digest(*key))


def belongs(content: Any, split: str) -> bool:
    """Returns whether content is of a split.

    Every content is of exactly one, so that no sample is both trained and tested.

    Raises:
        ValueError: on an unknown split.
    """
    if split not in SPLITS:
        raise ValueError(f"split={split!r}: expected one of {', '.join(SPLITS)}.")
    return SPLITS[digest("split", content) & 1] == split
