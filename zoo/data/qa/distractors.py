"""Distractors: texts around the one that answers a question, drawn from the other records of its set."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import chain

from zoo.data.documents import Document, digest_documents
from zoo.data.qa.records import QARecord, fold, mentions


class DistractorPool:
    """Pool of distractors: the texts and answers of a whole set."""

    def __init__(self, records: Sequence[QARecord]) -> None:
        self._texts = list(dict.fromkeys(text for r in records for text in (*r.paragraphs, *r.distractors)))
        self._folded: dict[str, str] = {}
        self._answers: dict[tuple[str, ...], list[str]] = {}
        for record in records:
            self._answers.setdefault(record.paragraphs, []).append(record.answers[0])

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over all texts and answers."""
        return digest_documents(
            [Document("", text) for text in self._texts]
            + [Document("answers", json.dumps(entry)) for entry in self._answers.items()]
        )

    def texts(self, record: QARecord, rng: random.Random) -> Iterator[str]:
        """Yields every text that does not answer a record, once and in random order, its own distractors first.

        A text answers a record if it is one that the record requires, or if one of the answers occurs in it.
        """
        answers = [fold(answer) for answer in record.answers]
        own = list(dict.fromkeys(record.distractors))
        rng.shuffle(own)
        known = {*record.paragraphs, *own}
        pool = (self._texts[index] for index in _shuffled(len(self._texts), rng))
        for text in chain(own, (text for text in pool if text not in known)):
            if not mentions(self._fold(text), answers):
                yield text

    def others(self, record: QARecord) -> tuple[str, ...]:
        """Returns answers to the other questions about the same text, as wrong values that occur in the context.

        Those that share words with a right answer, as a part of it or around it, are left out.
        """
        right = [fold(answer) for answer in record.answers]
        wrong = {fold(answer): answer for answer in reversed(self._answers.get(record.paragraphs, []))}
        kept = [(text, answer) for text, answer in wrong.items() if not any(text in r or r in text for r in right)]
        return tuple(answer for _, answer in reversed(kept))

    def _fold(self, text: str) -> str:
        if text not in self._folded:
            self._folded[text] = fold(text)
        return self._folded[text]


def _shuffled(count: int, rng: random.Random) -> Iterator[int]:
    """range(count) in random order, without the cost of the part that is not asked for."""
    moved: dict[int, int] = {}
    for left in range(count, 0, -1):
        pick = rng.randrange(left)
        yield moved.get(pick, pick)
        moved[pick] = moved.pop(left - 1, left - 1)
