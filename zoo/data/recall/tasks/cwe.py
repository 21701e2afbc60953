"""Common words: those that stand most often in a list of words (idea: RULER, arXiv:2404.06654)."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any, ClassVar

from zoo.data.recall.base import RecallTask
from zoo.data.recall.compose import Facts
from zoo.data.recall.encoder import Encoder
from zoo.data.recall.lists import ask_list, check_least
from zoo.data.recall.samples import RecallError
from zoo.data.recall.words import ADJECTIVES, NOUNS, draw_new
from zoo.registry import RECALL_TASKS

RIVALS = 5  # uncommon words that stand in every context


@RECALL_TASKS.register("cwe")
@dataclass(frozen=True)
class CommonWords(RecallTask):
    """Recall of the most frequent words in a list with one word on each line.

    A space before each word makes its tokens those of the answer. The filler consists of further uncommon words, so
    that the answer is the same at every length. A line that is cut off in front stands before the instruction, outside
    the list, and never ends like a common word. Where nouns are too few for a length, all words get adjectives
    ("calm-river").

    Attributes:
        common: number of words that are asked for, in order of their first appearance; each is a question, whose wrong
            values are the other common words and a few of the uncommon ones.
        common_repeats: number of times that each of them occurs.
        uncommon_repeats: largest number of times that any other word occurs.
    """

    common: int = 3
    common_repeats: int = 8
    uncommon_repeats: int = 2

    name: ClassVar[str] = "cwe"
    VARIANTS: ClassVar[dict[str, dict[str, Any]]] = {"three": {}, "one": {"common": 1}}

    @property
    def has_depth(self) -> bool:
        """False: all words are asked for."""
        return False

    def __post_init__(self) -> None:
        check_least(self.name, 1, common=self.common, uncommon_repeats=self.uncommon_repeats)
        check_least(self.name, 2, common_repeats=self.common_repeats)
        if self.common_repeats <= self.uncommon_repeats:
            raise RecallError(
                f"{self.name}: common_repeats={self.common_repeats}: expected more than "
                f"uncommon_repeats={self.uncommon_repeats}."
            )

    def draw(self, rng: random.Random, length: int | None, encoder: Encoder) -> Facts:
        adjectives = self._adjectives(length or 0, encoder)
        words = draw_new(rng, partial(_word, adjectives=adjectives), self.common + RIVALS)
        common, rivals = words[: self.common], words[self.common :]
        lines = common * self.common_repeats + rivals * self.uncommon_repeats
        rng.shuffle(lines)
        answers = [word for word in dict.fromkeys(lines) if word in set(common)]
        what = f"{self.common} most common words" if self.common > 1 else "most common word"
        prompt = f"The {what} of the list{', in order of first appearance, are:' if self.common > 1 else ' is'}"
        return Facts(
            tuple(f" {word}\n" for word in lines),
            ask_list(prompt, answers, sorted(words)),
            instruction=f"Remember the {what} of this list.\n",
            placed=None,
            filler=self._filler(frozenset(words), tuple(common), adjectives),
        )

    def _adjectives(self, length: int, encoder: Encoder) -> int:
        """Adjectives before each noun, so that there are words enough for a length.

        Half of the pool is left aside, so that draws of a word that may still be used stay likely.
        """
        for adjectives in count():
            pool = len(NOUNS) * len(ADJECTIVES) ** adjectives
            # a line of two words and more has at least three tokens
            tokens = 3 * pool if adjectives else sum(len(encoder(f" {noun}\n")) for noun in NOUNS)
            if self.common + RIVALS <= pool // 4 and length <= self.uncommon_repeats * tokens // 2:
                return adjectives
        raise AssertionError("the pool grows without end")

    def _filler(
        self, taken: frozenset[str], common: tuple[str, ...], adjectives: int
    ) -> Callable[[random.Random], Iterator[str]]:
        def lines(rng: random.Random) -> Iterator[str]:
            used: Counter[str] = Counter()
            while True:
                word = _word(rng, adjectives)
                if word not in taken and used[word] < self.uncommon_repeats and not word.endswith(common):
                    used[word] += 1
                    yield f" {word}\n"

        return lines


def _word(rng: random.Random, adjectives: int) -> str:
    return "-".join([*(rng.choice(ADJECTIVES) for _ in range(adjectives)), rng.choice(NOUNS)])
