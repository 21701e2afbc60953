"""Records of question answering: a question with the text that answers it, from any data set."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from zoo.data.documents import DataError

KINDS = ("question", "completion", "choice")
SHORT = 4  # characters: a shorter answer is looked for as whole words only, since it is part of many
JUDGMENTS = ("yes", "no")  # answers about a text that are not taken from it


@dataclass(frozen=True)
class QARecord:
    """A question with the text that answers it.

    Attributes:
        id: unique in its set.
        question: the question; of a completion, the end of the document, up to where the value follows.
        answers: texts that count as right, the first of which is scored.
        paragraphs: the text or texts that the answer requires.
        distractors: texts that the set itself offers around them.
        kind: ``question``; ``completion``, whose document is continued by the value; ``choice``, between ``options``.
        options: options of a choice, the right one included.
        where: file and line, or row, for messages.
    """

    id: str
    question: str
    answers: tuple[str, ...]
    paragraphs: tuple[str, ...]
    distractors: tuple[str, ...] = ()
    kind: str = "question"
    options: tuple[str, ...] = ()
    where: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind={self.kind!r}: expected one of {', '.join(KINDS)}.")
        if not self.answers or not self.paragraphs:
            raise DataError(f"{self.where or self.id}: expected at least one answer and one paragraph.")
        if self.kind == "choice" and self.answers[0] not in self.options:
            raise DataError(f"{self.where or self.id}: the answer {self.answers[0]!r} is not one of its options.")


def text_field(row: Mapping[str, Any], name: str, where: str) -> str:
    """Returns a field that must hold text, stripped of surrounding space.

    Raises:
        DataError: if it is missing, blank or anything else than valid text.
    """
    value = row.get(name)
    if value is None:
        raise DataError(
            f"{where}: no {name!r}; it has {', '.join(map(str, row)) or 'nothing'}. Add it, or remove the record."
        )
    return check_text(value, name, where)


def check_text(value: Any, name: str, where: str) -> str:
    """Checks a value that must hold text; see :func:`text_field`."""
    if not isinstance(value, str):
        raise DataError(f"{where}: {name!r} is {type(value).__name__}, not text. Write it as a string.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{where}: {name!r} has half a character (a lone surrogate): correct the record.") from error
    if not value.strip():
        raise DataError(f"{where}: {name!r} is blank. Fill it in, or remove the record.")
    return value.strip()


def fold(text: str) -> str:
    """Normalizes text for :func:`mentions`: one space between words, no capitals."""
    return " ".join(text.split()).casefold()


def mentions(folded: str, answers: Iterable[str]) -> bool:
    """Returns whether a folded text contains one of the folded answers; yes and no are ignored."""
    return any(_stands_in(folded, answer) for answer in answers if answer not in JUDGMENTS)


def _stands_in(folded: str, answer: str) -> bool:
    if answer not in folded:
        return False
    return len(answer) >= SHORT or re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", folded) is not None


def check_ids(records: Sequence[QARecord]) -> None:
    """Checks that no two records have the same id.

    Raises:
        DataError: naming both.
    """
    seen: dict[str, QARecord] = {}
    for record in records:
        if record.id in seen:
            first = seen[record.id].where
            raise DataError(f"{record.where}: the id {record.id!r} is that of {first} too. Give every record its own.")
        seen[record.id] = record
