"""Needles in a haystack, with several keys, values or questions as in RULER (Hsieh et al. 2024, arXiv:2404.06654)."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from zoo.data.recall.base import RecallTask
from zoo.data.recall.compose import Facts
from zoo.data.recall.encoder import Encoder
from zoo.data.recall.lists import ask_list, check_least
from zoo.data.recall.samples import Question, RecallError
from zoo.data.recall.words import NOUNS, Draw, draw_new, draw_noun, draw_number, draw_uuid, key_phrase
from zoo.registry import RECALL_TASKS

TYPES: dict[str, Draw] = {"number": draw_number, "word": draw_noun, "uuid": draw_uuid}
MOST = len(NOUNS) // 2  # values of a sample: half of the smallest type, so that distinct ones are found soon


@RECALL_TASKS.register("niah")
@dataclass(frozen=True)
class Needle(RecallTask):
    """Sentences such as "The number for grey-otter is 4821734." in a haystack, asked by their key.

    Rank is scored against the values of the other needles; a single needle has no rank.

    Attributes:
        keys: number of keys.
        values: needles of each key; all of them are asked for, in the order in which they occur in the context.
        queries: number of keys that are asked, one after the other.
        value_type: ``number``, ``word`` or ``uuid``.
        haystack_of_needles: whether the filler is more needles.
    """

    name: ClassVar[str] = "niah"
    VARIANTS: ClassVar[dict[str, dict[str, Any]]] = {
        "single": {},
        "multikey": {"keys": 4},
        "multivalue": {"values": 4},
        "multiquery": {"keys": 4, "queries": 4},
        "needles": {"keys": 4, "haystack_of_needles": True},
    }
    keys: int = 1
    values: int = 1
    queries: int = 1
    value_type: str = "number"
    haystack_of_needles: bool = False

    def __post_init__(self) -> None:
        check_least(self.name, 1, keys=self.keys, values=self.values, queries=self.queries)
        if self.keys * self.values > MOST:
            raise RecallError(f"niah: keys={self.keys} x values={self.values}: expected {MOST} needles at most.")
        if self.queries > self.keys:
            raise RecallError(f"niah: queries={self.queries}: expected at most keys={self.keys}.")
        if self.value_type not in TYPES:
            raise RecallError(f"niah: value_type={self.value_type!r}: expected one of {', '.join(TYPES)}.")

    @property
    def has_depth(self) -> bool:
        """Whether one needle is asked for."""
        return self.queries == self.values == 1

    def draw(self, rng: random.Random, length: int | None, encoder: Encoder) -> Facts:
        keys = draw_new(rng, key_phrase, self.keys)
        values = draw_new(rng, TYPES[self.value_type], self.keys * self.values)
        needles = list(zip(keys * self.values, values))
        if not self.has_depth:
            rng.shuffle(needles)  # they stand in the context in this order
        return Facts(
            facts=tuple(self._sentence(key, value) for key, value in needles),
            questions=tuple(self._questions(keys[: self.queries], needles)),
            placed=0 if self.has_depth else None,
            ordered=not self.has_depth,
            filler=partial(self._needles, tuple(keys), tuple(values)) if self.haystack_of_needles else None,
        )

    def _sentence(self, key: str, value: str) -> str:
        return f"The {self.value_type} for {key} is {value}.\n"

    def _questions(self, keys: list[str], needles: list[tuple[str, str]]) -> Iterator[Question]:
        for index, key in enumerate(keys):
            prompt = f"The {self.value_type} for {key} is"
            if self.values > 1:
                prompt = f"In order, the {self.value_type}s for {key} are"
            answers = [value for owner, value in needles if owner == key]
            yield from ask_list(".\n" * (index > 0) + prompt, answers, [value for _, value in needles])

    def _needles(self, keys: tuple[str, ...], values: tuple[str, ...], rng: random.Random) -> Iterator[str]:
        while True:
            (key,) = draw_new(rng, key_phrase, 1, keys)
            (value,) = draw_new(rng, TYPES[self.value_type], 1, values)
            yield self._sentence(key, value)
