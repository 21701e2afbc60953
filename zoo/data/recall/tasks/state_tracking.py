"""State tracking: the running product in a group, asked behind every symbol (word problems: Barrington, 1989).

After Merrill, Petty and Sabharwal, "The Illusion of State in State-Space Models" (2024, arXiv 2404.08819), and Grazzi
et al., "Unlocking State-Tracking in Linear RNNs Through Negative Eigenvalues" (2024, arXiv 2411.12537).
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from itertools import accumulate
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from annotated_types import Gt, Le

from zoo.data.recall.base import Place, RecallTask
from zoo.data.recall.compose import Facts
from zoo.data.recall.encoder import Encoder
from zoo.data.recall.groups import GROUPS
from zoo.data.recall.haystack import Haystack
from zoo.data.recall.samples import ATTEMPTS, Answer, RecallError, Sample, belongs, digest, sample_rng
from zoo.registry import RECALL_TASKS

SHORTEST = 3  # the document token, a symbol, and the place behind it
FIRST = dict(zip(GROUPS, accumulate(map(len, GROUPS.values()), initial=0)))  # number of each group's identity
NEEDED = sum(map(len, GROUPS.values()))


@RECALL_TASKS.register("state_tracking")
@dataclass(frozen=True)
class StateTracking(RecallTask):
    """Every token is an element of a group, and the product of those so far is asked for behind each.

    What is asked for is a label and never an input: a model that read the last state would need one symbol more and
    no memory. Each group has ids of its own among the first of the tokenizer, one per element, as symbol and as state,
    so that a model can learn them all. Symbols are drawn evenly, and so all states are as likely; with ``swaps`` that
    holds once some thirty symbols are read.

    Attributes:
        group: whose elements are read.
        swaps: whether symbols exchange two things at most, in place of any permutation.
        asked: share of the states that are asked for, the last ones; half of them, so that an answer at twice the
            length is behind more symbols than any answer at the length.
    """

    name: ClassVar[str] = "state_tracking"
    VARIANTS: ClassVar[dict[str, dict[str, Any]]] = {
        "parity": {"group": "parity"},
        "mod5": {"group": "mod5"},
        "s3_swap": {"group": "s3", "swaps": True},
        "s3": {"group": "s3"},
        "s5_swap": {"group": "s5", "swaps": True},
        "s5": {"group": "s5"},
    }
    group: Literal["parity", "mod5", "s3", "s5"] = "parity"
    swaps: bool = False
    asked: Annotated[float, Gt(0), Le(1)] = 0.5

    def __post_init__(self) -> None:
        if self.group not in GROUPS:
            raise RecallError(f"{self.name}: group={self.group!r}: expected one of {', '.join(GROUPS)}.")
        if self.swaps and not GROUPS[self.group].swaps:
            raise RecallError(f"{self.name}: swaps=true with group={self.group}: expected group=s3 or s5.")
        if not 0 < self.asked <= 1:
            raise RecallError(f"{self.name}: asked={self.asked}: expected a share above 0, at most 1.")

    @property
    def has_depth(self) -> bool:
        """False: every state depends on all symbols before it."""
        return False

    @property
    def has_baselines(self) -> bool:
        """False: without its symbols there is no question."""
        return False

    def draw(self, rng: random.Random, length: int | None, encoder: Encoder) -> Facts:
        """Refuses to draw facts, since samples of this task are token ids without text."""
        raise NotImplementedError("state_tracking has no text: call sample")

    def without_context(self, place: Place, encoder: Encoder, haystack: Haystack | None = None) -> Sample:
        """Refuses a sample without context, which this task has not (:attr:`has_baselines`)."""
        raise NotImplementedError("state_tracking has no question without its symbols")

    def sample(self, place: Place, encoder: Encoder, haystack: Haystack | None = None) -> Sample:
        """Makes a sample as :class:`RecallTask` says, without the haystack.

        A document token, ``length - 2`` symbols, and a document token that ends the sample: the place at which the last
        state is asked for. ``length=None`` is the shortest sample, of one symbol.

        Raises:
            RecallError: if the length has no place for a symbol, or the tokenizer too few ids.
        """
        length = SHORTEST if place.length is None else place.length
        self._check(length, encoder)
        symbols, identity = self._symbols(place, length - 2)
        table = GROUPS[self.group].table
        states = list(accumulate(symbols, lambda state, symbol: table[state][symbol]))
        ids = encoder.ids[FIRST[self.group] :]
        tokens = np.full(length, encoder.document_token, dtype=np.int64)
        labels = tokens.copy()
        tokens[1:-1], labels[2:] = ids[symbols], ids[states]
        asked = range(length - math.ceil(self.asked * len(states)), length)
        answers = tuple(Answer(at, at + 1) for at in asked)
        return Sample(identity, tokens, answers, labels=labels, chance=1 / len(table))

    def _symbols(self, place: Place, count: int) -> tuple[list[int], str]:
        """Symbols of the split, which about every second draw is, and the name of the sample.

        What belongs to a split are the symbols, whichever variant they are drawn for.
        """
        key = [self.name, self.group, self.swaps, self.asked, place.length, place.seed, place.index, place.split]
        group = GROUPS[self.group]
        choices = group.swaps if self.swaps else range(len(group))
        for attempt in range(ATTEMPTS):
            symbols = sample_rng(key, attempt).choices(choices, k=count)
            content = [self.name, self.group, bytes(symbols).hex()]
            if belongs(content, place.split):
                return symbols, f"{self.name}-{digest(content, key):032x}"
        raise RecallError(
            f"{self.name}: no content of the split {place.split!r} in {ATTEMPTS} draws: {count} symbols of "
            f"{self.group} are too few. Choose a longer task.lengths."
        )

    def _check(self, length: int, encoder: Encoder) -> None:
        if length < SHORTEST:
            raise RecallError(
                f"{self.name}: a symbol and its state need {SHORTEST} tokens, more than length={length}. "
                "Choose a longer task.lengths."
            )
        if len(encoder.ids) < NEEDED:
            raise RecallError(
                f"{self.name}: the elements of all groups need {NEEDED} ids, and this tokenizer has "
                f"{len(encoder.ids)}. Choose tokenizer=bytes, or a larger vocabulary."
            )
