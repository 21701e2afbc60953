"""Key-value retrieval (Liu et al. 2023, arXiv:2307.03172): the value of one key among many."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from zoo.data.recall.base import RecallTask
from zoo.data.recall.compose import Facts
from zoo.data.recall.encoder import Encoder
from zoo.data.recall.lists import check_least
from zoo.data.recall.samples import Question, RecallError
from zoo.data.recall.words import NOUNS, Draw, draw_hex, draw_new, draw_noun, draw_uuid, key_phrase
from zoo.registry import RECALL_TASKS

# What draws keys and values.
KINDS: dict[str, tuple[Draw, Draw]] = {
    "hex": (draw_hex, draw_hex),
    "uuid": (draw_uuid, draw_uuid),
    "words": (key_phrase, draw_noun),
}
MOST = len(NOUNS) // 2  # so that distinct values are found soon


@RECALL_TASKS.register("kv")
@dataclass(frozen=True)
class KeyValue(RecallTask):
    """Retrieval of the value of one key from lines of a key and a value; the filler is more of such lines.

    Attributes:
        kind: format of keys and values: ``hex`` (8 characters), ``uuid`` (36), ``words`` (an adjective and a noun; a
            noun).
        distractors: number of pairs in every context besides the one asked for. Rank is scored against their values.
    """

    name: ClassVar[str] = "kv"
    VARIANTS: ClassVar[dict[str, dict[str, Any]]] = {
        "default": {"kind": "hex"},
        "uuid": {"kind": "uuid"},
        "words": {"kind": "words"},
    }
    kind: str = "hex"
    distractors: int = 7

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise RecallError(f"kv: kind={self.kind!r}: expected one of {', '.join(KINDS)}.")
        check_least(self.name, 0, distractors=self.distractors)
        if self.distractors > MOST:
            raise RecallError(f"kv: distractors={self.distractors}: expected {MOST} at most.")

    def draw(self, rng: random.Random, length: int | None, encoder: Encoder) -> Facts:
        draw_key, draw_value = KINDS[self.kind]
        keys = draw_new(rng, draw_key, self.distractors + 1)
        values = draw_new(rng, draw_value, self.distractors + 1)
        # The closing quote is no part of the answer: in a context its token may be one with the end of the line.
        answer, *others = [f' "{value}' for value in values]
        question = Question(f'"{keys[0]}":', answer, tuple(others), (values[0],))
        return Facts(
            facts=tuple(f'"{key}": "{value}"\n' for key, value in zip(keys, values)),
            questions=(question,),
            instruction="Keys and values:\n",
            ordered=False,
            filler=partial(self._pairs, tuple(keys), tuple(values)),
        )

    def _pairs(self, keys: tuple[str, ...], values: tuple[str, ...], rng: random.Random) -> Iterator[str]:
        draw_key, draw_value = KINDS[self.kind]
        while True:
            (key,), (value,) = draw_new(rng, draw_key, 1, keys), draw_new(rng, draw_value, 1, values)
            yield f'"{key}": "{value}"\n'
