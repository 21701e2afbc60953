"""Frequent words: invented words whose frequencies follow a Zipf law (idea: RULER, arXiv:2404.06654)."""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from zoo.data.recall.base import RecallTask
from zoo.data.recall.compose import Facts
from zoo.data.recall.encoder import Encoder
from zoo.data.recall.lists import ask_list, check_least
from zoo.data.recall.samples import RecallError
from zoo.data.recall.words import draw_new
from zoo.registry import RECALL_TASKS

CONSONANTS, VOWELS = "bdfgklmnprstvz", "aeiou"
ZETA = math.pi**2 / 6  # the sum of 1 / rank^2
MARGIN = 2  # by which each of the top words stands more often than the next one
RIVALS = 4  # words, at least, besides the top ones
SHORT = 32  # lines where no length is given
MOST = 40


@RECALL_TASKS.register("fwe")
@dataclass(frozen=True)
class FrequentWords(RecallTask):
    """Recall of the most frequent words in a list whose frequencies follow a Zipf law.

    The word of rank r has a share of about 1 / r^2 (zeta, alpha = 2). Words are invented, one on each line. A space
    before each word makes its tokens those of the answer. The list is the longest one that fits, so that shares are the
    same at every length; the filler, for the few remaining tokens, consists of words that occur once. A line that is
    cut off in front stands before the instruction, outside the list, and is never a whole word.

    Attributes:
        top: number of most frequent words that are asked for, in decreasing order. Each is a question, whose wrong
            values are the other top words and the next ones in frequency.
    """

    top: int = 3

    name: ClassVar[str] = "fwe"
    VARIANTS: ClassVar[dict[str, dict[str, Any]]] = {"three": {}, "one": {"top": 1}}

    @property
    def has_depth(self) -> bool:
        """False: all words are asked for."""
        return False

    def __post_init__(self) -> None:
        check_least(self.name, 1, top=self.top)
        if self.top > MOST:
            raise RecallError(f"{self.name}: top={self.top}: expected at most {MOST}.")

    def draw(self, rng: random.Random, length: int | None, encoder: Encoder) -> Facts:
        what = f"{self.top} most frequent words" if self.top > 1 else "most frequent word"
        prompt = f"The {what} of the list{', most frequent first, are:' if self.top > 1 else ' is'}"
        most_lines = SHORT if length is None else max(length // 2, SHORT)  # no line has fewer tokens than two
        words = draw_new(rng, _word, len(zipf_counts(most_lines, self.top)))
        questions = ask_list(prompt, words[: self.top], sorted(words[: self.top + RIVALS]))
        instruction = "Count the words of this list.\n"
        lines = SHORT
        if length is not None:
            asked = sum(len(encoder(q.prompt)) + len(encoder(q.answer)) for q in questions)
            lines = self._lines(length - 1 - len(encoder(instruction)) - asked, most_lines, words, encoder)
        counts = zipf_counts(lines, self.top)
        facts = [f" {word}\n" for word, times in zip(words, counts) for _ in range(times)]
        rng.shuffle(facts)
        return Facts(tuple(facts), questions, instruction, placed=None, filler=_filler(frozenset(words)))

    def _lines(self, budget: int, most: int, words: list[str], encoder: Encoder) -> int:
        """Lines of the longest list within a budget of tokens; one where none is, which ``compose`` reports."""
        sizes = [len(encoder(f" {word}\n")) for word in words]

        def tokens(lines: int) -> int:
            return sum(size * times for size, times in zip(sizes, zipf_counts(lines, self.top)))

        return max(bisect_right(range(1, most + 1), budget, key=tokens), 1)


def zipf_counts(lines: int, top: int) -> list[int]:
    """Returns how often the word of each rank occurs in a list, in decreasing order.

    There are about ``lines`` in all, by shares 1 / rank^2; words that would occur less than twice occur once. Each of
    the first ``top`` occurs more often than the next one by at least ``MARGIN``.
    """
    counts: list[int] = []
    while (times := round(lines / ZETA / (len(counts) + 1) ** 2)) >= 2:
        counts.append(times)
    counts += [1] * max(lines - sum(counts), top + RIVALS - len(counts))
    for rank in reversed(range(top)):
        counts[rank] = max(counts[rank], counts[rank + 1] + MARGIN)
    return counts


def _word(rng: random.Random) -> str:
    """Two syllables and a consonant or three syllables, so that no word is the end of another one."""
    syllables = "".join(rng.choice(CONSONANTS) + rng.choice(VOWELS) for _ in range(2))
    return syllables + rng.choice(CONSONANTS) + rng.choice(["", rng.choice(VOWELS)])


def _filler(taken: frozenset[str]) -> Callable[[random.Random], Iterator[str]]:
    def lines(rng: random.Random) -> Iterator[str]:
        used = set(taken)
        while True:
            word = _word(rng)
            if word not in used:
                used.add(word)
                yield f" {word}\n"

    return lines
