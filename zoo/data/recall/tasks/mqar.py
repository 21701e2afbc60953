"""Multi-query associative recall on token ids, as in Zoology (Arora et al. 2023, arXiv:2312.04927)."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np

from zoo.data.recall.base import Place, RecallTask
from zoo.data.recall.compose import Facts
from zoo.data.recall.encoder import Encoder
from zoo.data.recall.haystack import Haystack
from zoo.data.recall.lists import check_least
from zoo.data.recall.samples import ATTEMPTS, Answer, RecallError, Sample, belongs, digest
from zoo.registry import RECALL_TASKS


@RECALL_TASKS.register("mqar")
@dataclass(frozen=True)
class MQAR(RecallTask):
    """Pairs of a key and a value, then every key once more, in another order, each followed by its value.

    Keys are from one half of the vocabulary, values from the other. After the pairs come blanks, among which the
    queries are placed: a blank of two tokens that is the i-th after the pairs is chosen with a weight of ``i ** (power
    - 1)``, so that a small power puts most queries near the pairs and a few far away. No blank has a key of the sample.

    Attributes:
        pairs: number of pairs of a key and a value.
        queries: number of keys that are asked, each drawn from all; None for every key once. If each is asked once, a
            model can rule out what was answered before, which layers that sum up values learn sooner than to recall.
        power: exponent over 0; 1 spreads the queries evenly.
        filler: whether blanks are random ids; else all are the first id of the vocabulary.
    """

    name: ClassVar[str] = "mqar"
    VARIANTS: ClassVar[dict[str, dict[str, Any]]] = {f"pairs{n}": {"pairs": n} for n in (8, 4, 16, 32, 64)}
    pairs: int = 8
    queries: int | None = None
    power: float = 0.01
    filler: bool = True

    def __post_init__(self) -> None:
        check_least(self.name, 1, pairs=self.pairs, queries=self.asked)
        if not self.power > 0:
            raise RecallError(f"mqar: power={self.power}: expected a number over 0.")

    @property
    def asked(self) -> int:
        """Number of questions of a sample."""
        return self.pairs if self.queries is None else self.queries

    @property
    def has_depth(self) -> bool:
        """False: every pair is asked for."""
        return False

    def draw(self, rng: random.Random, length: int | None, encoder: Encoder) -> Facts:
        """Raises an error, since the samples of this task are token ids without text."""
        raise NotImplementedError("mqar has no text: call sample")

    def sample(self, place: Place, encoder: Encoder, haystack: Haystack | None = None) -> Sample:
        """Returns the sample at a place; the haystack is not used.

        ``length=None`` puts the queries directly after the pairs.

        Raises:
            RecallError: if the pairs do not fit the length or the vocabulary.
        """
        drawn = self._drawn(place, encoder)
        begin = 1 + 2 * self.pairs
        length = begin + 2 * self.asked if place.length is None else place.length
        tokens = self._blanks(drawn, length, encoder)
        tokens[0] = encoder.document_token
        tokens[1:begin:2], tokens[2:begin:2] = drawn.keys, drawn.values
        places = begin + 2 * _slots(drawn.rng, (length - begin) // 2, self.asked, self.power)
        values = drawn.values[drawn.order]
        tokens[places], tokens[places + 1] = drawn.keys[drawn.order], values
        return Sample(drawn.id, tokens, _answers(places + 1, values, drawn.values))

    def without_context(self, place: Place, encoder: Encoder, haystack: Haystack | None = None) -> Sample:
        """Returns the same queries without the pairs: ``(1 + 2 * asked,)`` tokens."""
        drawn = self._drawn(place, encoder)
        values = drawn.values[drawn.order]
        tokens = np.full(1 + 2 * self.asked, encoder.document_token, dtype=np.int64)
        tokens[1::2], tokens[2::2] = drawn.keys[drawn.order], values
        return Sample(drawn.id, tokens, _answers(np.arange(2, len(tokens), 2), values, drawn.values))

    def _drawn(self, place: Place, encoder: Encoder) -> _Drawn:
        """Pairs and queries of the split, about every second draw is."""
        half = (len(encoder.ids) - 1) // 2  # the first id is neither key nor value
        self._check(place.length, half)
        options = [self.pairs, self.power, self.filler] + ([] if self.queries is None else [self.queries])
        key = [self.name, options, place.length, place.depth, place.seed, place.index, place.split]
        rng = np.random.Generator(np.random.PCG64(digest(key)))
        for _ in range(ATTEMPTS):
            picks = _distinct(rng, half, self.pairs)
            keys, values = encoder.ids[1 + picks], encoder.ids[1 + half + _distinct(rng, half, self.pairs)]
            order = rng.permutation(self.pairs) if self.queries is None else rng.integers(self.pairs, size=self.asked)
            content = np.concatenate((keys, values, order)).astype("<i8").tobytes().hex()
            if belongs(content, place.split):
                return _Drawn(rng, keys, 1 + picks, values, order, f"{self.name}-{digest(content, key):032x}")
        raise RecallError(f"mqar: no content of the split {place.split!r} in {ATTEMPTS} draws: it has too few.")

    def _check(self, length: int | None, half: int) -> None:
        needed = 1 + 2 * self.pairs + 2 * self.asked
        if length is not None and length < needed:
            most = (length - 1) // 4 if self.queries is None else (length - 1) // 2 - self.queries
            fits = f"pairs={most} would fit this length" if most > 0 else "one pair needs 5"
            raise RecallError(
                f"mqar: pairs={self.pairs} need {needed} tokens, more than length={length}: {fits}. "
                "Choose a longer task.lengths, or fewer pairs."
            )
        if self.pairs > half:
            raise RecallError(
                f"mqar: pairs={self.pairs} need as many keys, and half of this tokenizer's ids are {half}. "
                f"Choose at most pairs={half}."
            )

    def _blanks(self, drawn: _Drawn, length: int, encoder: Encoder) -> np.ndarray:
        """``length`` tokens, none of which is one of the keys."""
        if not self.filler:
            return np.full(length, encoder.ids[0], dtype=np.int64)
        taken = np.sort(drawn.picks)
        free = len(encoder.ids) - self.pairs
        numbers = (drawn.rng.random(length) * free).astype(np.int64)
        numbers += np.searchsorted(taken - np.arange(self.pairs), numbers, side="right")  # steps over those taken
        return encoder.ids[numbers]


@dataclass(frozen=True)
class _Drawn:
    """Pairs ``keys[i], values[i]``, the places of the keys among the ids, and the order in which pairs are asked."""

    rng: np.random.Generator
    keys: np.ndarray
    picks: np.ndarray
    values: np.ndarray
    order: np.ndarray
    id: str


def _distinct(rng: np.random.Generator, below: int, n: int) -> np.ndarray:
    """``n`` different numbers from 0 on, below a limit, each equally likely: the first different ones of many draws."""
    found: dict[int, None] = {}
    while len(found) < n:
        found.update(dict.fromkeys((rng.random(2 * n) * below).astype(np.int64).tolist()))
    return np.fromiter(found, dtype=np.int64, count=n)


@lru_cache(64)
def _weights(blanks: int, power: float) -> np.ndarray:
    return np.arange(1, blanks + 1) ** (power - 1.0)


def _slots(rng: np.random.Generator, blanks: int, n: int, power: float) -> np.ndarray:
    """``n`` of the blanks in order, drawn without replacement: those whose exponential clocks ring first."""
    clocks = rng.standard_exponential(blanks) / _weights(blanks, power)
    return np.sort(np.argpartition(clocks, n - 1)[:n])


def _answers(places: np.ndarray, asked: np.ndarray, values: np.ndarray) -> tuple[Answer, ...]:
    """Answers of one token each; of the others, those not answered yet come first: they are harder to rule out."""
    each, every = asked.tolist(), values.tolist()
    found = []
    for number, place in enumerate(places.tolist()):
        others = dict.fromkeys((*each[number + 1 :], *each[:number], *every))
        others.pop(each[number])
        found.append(Answer(place, place + 1, tuple((value,) for value in others)))
    return tuple(found)
