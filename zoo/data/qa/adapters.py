"""Adapters that turn rows of public data sets into records.

A row that is well-formed but asks nothing raises :class:`UnusableRow`; one of another layout raises DataError.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from zoo.data.documents import DataError
from zoo.data.qa.compose_qa import SENTENCE_END
from zoo.data.qa.records import QARecord, check_text, fold, text_field
from zoo.data.qa.squad import squad_record

Row = Mapping[str, Any]
Adapter = Callable[[Row, str, str], QARecord]


class UnusableRow(Exception):
    """A row without a question that its text answers; the message says what all such rows have in common."""


def squad(row: Row, where: str, number: str) -> QARecord:
    """Reads a row of SQuAD: id, title, context, question, answers {text[], answer_start[]}."""
    record = squad_record(row, where, number)
    if record is None:
        raise UnusableRow("without an answer")
    return record


def hotpotqa(row: Row, where: str, number: str) -> QARecord:
    """Reads a row of HotpotQA (Yang et al., 2018, arXiv:1809.09600).

    The layout is id, question, answer, supporting_facts {title[], sent_id[]}, context {title[], sentences[][]}; or the
    original JSON, whose facts and contexts are lists of pairs.
    """
    needed = {title for title, _ in _pairs(row, "supporting_facts", ("title", "sent_id"), where)}
    paragraphs: list[str] = []
    distractors: list[str] = []
    found = set()
    for title, sentences in _pairs(row, "context", ("title", "sentences"), where):
        if not isinstance(sentences, list):
            raise DataError(f"{where}: the sentences of {title!r} are {type(sentences).__name__}, expected a list.")
        text = " ".join(" ".join(check_text(s, "context", where) for s in sentences if str(s).strip()).split())
        if text:
            (paragraphs if title in needed else distractors).append(f"{title}: {text}")
            found |= {title} & needed
    if found != needed:
        raise UnusableRow("without all titles of 'supporting_facts' in 'context'")
    return QARecord(
        id=str(row.get("id") or row.get("_id") or number),
        question=text_field(row, "question", where),
        answers=(text_field(row, "answer", where),),
        paragraphs=tuple(paragraphs),
        distractors=tuple(distractors),
        where=where,
    )


def narrativeqa(row: Row, where: str, number: str) -> QARecord:
    """Reads a row of NarrativeQA whose summary answers the question (Kočiský et al., 2018, arXiv:1712.07040).

    The layout is document {summary {text}, text}, question {text}, answers [{text}].
    """
    summary = text_field(_part(_part(row, "document", where), "summary", where), "text", where)
    return _narrative(row, summary, where, number)


def narrativeqa_full(row: Row, where: str, number: str) -> QARecord:
    """Reads a row of :func:`narrativeqa` whose whole book or script answers the question."""
    return _narrative(row, text_field(_part(row, "document", where), "text", where), where, number)


def quality(row: Row, where: str, number: str) -> QARecord:
    """Reads a row of QuALITY (Pang et al., 2022, arXiv:2112.08608): article, question, options [4], answer.

    The answer is an index from 0.
    """
    options = _texts(row, "options", where)
    answer = row.get("answer")
    count = len(row["options"])  # of which some may be alike
    if not isinstance(answer, int) or not 0 <= answer < count:
        raise DataError(f"{where}: 'answer' is {answer!r}, expected the index of one of {count} options, from 0.")
    return QARecord(
        id=number,
        question=text_field(row, "question", where),
        answers=(check_text(row["options"][answer], "options", where),),
        paragraphs=(text_field(row, "article", where),),
        kind="choice",
        options=tuple(options),
        where=where,
    )


def longbench(row: Row, where: str, number: str) -> QARecord:
    """Reads a row of LongBench: context, question (input in the original files), answers [], _id.

    Bai et al., 2023, arXiv:2308.14508.
    """
    return QARecord(
        id=str(row.get("_id") or number),
        question=text_field(row, "question" if row.get("question") else "input", where),
        answers=tuple(_texts(row, "answers", where)),
        paragraphs=(text_field(row, "context", where),),
        where=where,
    )


def babilong(row: Row, where: str, number: str) -> QARecord:
    """Reads a row of BABILong: input, question, target. Kuratov et al., 2024, arXiv:2406.10149."""
    return QARecord(
        id=number,
        question=text_field(row, "question", where),
        answers=(text_field(row, "target", where),),
        paragraphs=(text_field(row, "input", where),),
        where=where,
    )


def completion(row: Row, where: str, number: str) -> QARecord:
    """Reads a row with a text that stops before a value: a recall triple of Arora et al., 2024, arXiv:2402.18668.

    The question is the last line of the text, or the last sentence of that line; the value must occur before it.
    """
    text = text_field(row, "text", where)
    cut = _last_piece(text)
    value = text_field(row, "value", where)
    if cut == 0:
        raise UnusableRow("whose 'text' is a single sentence")
    if fold(value) not in fold(text[:cut]):
        raise UnusableRow("whose 'value' is not in 'text'")
    return QARecord(
        id=number,
        question=text[cut:],
        answers=(value,),
        paragraphs=(text[:cut],),
        kind="completion",
        where=where,
    )


def _narrative(row: Row, text: str, where: str, number: str) -> QARecord:
    answers = _pairs(row, "answers", ("text",), where)
    return QARecord(
        id=number,
        question=text_field(_part(row, "question", where), "text", where),
        answers=tuple(dict.fromkeys(check_text(answer, "answers", where) for (answer,) in answers)),
        paragraphs=(text,),
        where=where,
    )


def _part(row: Row, name: str, where: str) -> Row:
    part = row.get(name)
    if not isinstance(part, Mapping):
        raise DataError(f"{where}: {name!r} is {type(part).__name__}, expected an object; is this the right data set?")
    return part


def _texts(row: Row, name: str, where: str) -> list[str]:
    """Different texts of a list."""
    value = row.get(name)
    if not isinstance(value, list) or not value:
        raise DataError(f"{where}: {name!r} is {type(value).__name__}, expected a list with at least one text.")
    return list(dict.fromkeys(check_text(text, name, where) for text in value))


def _pairs(row: Row, name: str, fields: tuple[str, ...], where: str) -> list[tuple[Any, ...]]:
    """Entries of a column of structs: lists side by side, a list of objects, or a list of lists."""
    column = row.get(name)
    entries: list[tuple[Any, ...]] = []
    try:
        if isinstance(column, Mapping):
            entries = list(zip(*(column[field] for field in fields), strict=True))
        elif isinstance(column, list):
            entries = [tuple(e[f] for f in fields) if isinstance(e, Mapping) else tuple(e) for e in column]
    except (KeyError, TypeError, ValueError):
        entries = []
    if not entries or any(len(entry) != len(fields) for entry in entries):
        raise DataError(f"{where}: {name!r} is not a list of {', '.join(fields)}; is this the right data set?")
    return entries


def _last_piece(text: str) -> int:
    """Where the last line or sentence of a text begins, whichever is shorter; 0 if there is only one."""
    sentences = [match.start() + len(match.group().rstrip()) for match in SENTENCE_END.finditer(text)]
    return max(text.rfind("\n") + 1, sentences[-1] if sentences else 0)
