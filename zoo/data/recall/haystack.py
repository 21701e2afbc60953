"""Haystacks: text that surrounds the facts of a sample, noise or lines of real text."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Protocol

import numpy as np

from zoo.data.documents import DataError
from zoo.data.recall.encoder import Encoder
from zoo.data.store.token_store import TokenStore
from zoo.data.tokenizers import tokens_with

LONGEST = 48  # tokens of a unit, where a line is longer
NOISE = (
    "The rain fell softly on the old stone bridge.\n",
    "A train passed the station without stopping.\n",
    "Somebody had left the window open all night.\n",
    "The baker counted the loaves and closed the shop.\n",
    "Two sparrows were quarrelling over a crumb.\n",
    "It was warmer in the valley than on the hill.\n",
    "The clock in the hall was five minutes slow.\n",
    "Nobody remembered who had planted the oak.\n",
    "The ferry crosses the river twice a day.\n",
    "A letter lay unopened on the kitchen table.\n",
)


class Haystack(Protocol):
    """Protocol of sources of text around facts."""

    name: str
    fingerprint: str

    def units(self, rng: random.Random) -> Iterator[tuple[int, ...]]:
        """Yields the token ids of lines or sentences, endlessly."""
        ...


class NoiseHaystack:
    """Haystack of a few plain sentences in random order."""

    def __init__(self, encoder: Encoder) -> None:
        self.name = self.fingerprint = "noise"
        self._sentences = [encoder(sentence) for sentence in NOISE]

    def units(self, rng: random.Random) -> Iterator[tuple[int, ...]]:
        """Yields the token ids of random sentences, endlessly."""
        last = -1
        while True:
            index = rng.randrange(len(self._sentences) - (last >= 0))
            last = index + (index >= last >= 0)  # no sentence twice in a row
            yield self._sentences[last]


class StoreHaystack:
    """Haystack of consecutive lines of a token store from a random place on; long lines are cut.

    Raises:
        DataError: if the store has no text.
    """

    def __init__(self, encoder: Encoder, store: TokenStore, name: str = "corpus") -> None:
        self.name, self.fingerprint = name, store.key
        self._tokens, self._end = store.tokens, store.eos
        ending = np.zeros(encoder.vocab_size, dtype=bool)
        ending[tokens_with(encoder.tokenizer, ["\n"])] = True
        self._ending = ending
        if len(store.tokens) <= len(store):
            raise DataError(f"the haystack {name} has no text: choose another task.haystack.")

    def units(self, rng: random.Random) -> Iterator[tuple[int, ...]]:
        """Yields the token ids of lines of the store, endlessly."""
        place = rng.randrange(len(self._tokens))
        unit: list[int] = []
        first = True  # begins in the middle of a line
        while True:
            token = int(self._tokens[place])
            place = (place + 1) % len(self._tokens)
            if token != self._end:
                unit.append(token)
            if unit and (token == self._end or self._ending[token] or len(unit) >= LONGEST):
                if not first or len(unit) >= LONGEST:
                    yield tuple(unit)
                first, unit = False, []
