"""Reader of SQuAD-format files: the official nesting of articles and paragraphs, or one question per row.

Rajpurkar et al., 2016, "SQuAD: 100,000+ Questions for Machine Comprehension of Text", arXiv:1606.05250.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from zoo.data.documents import DataError, expand
from zoo.data.qa.records import JUDGMENTS, QARecord, check_ids, check_text, fold, mentions, text_field
from zoo.data.sources.readers import content_suffix, read_whole

log = logging.getLogger(__name__)

Row = tuple[str, str, Any]  # where it stands, an id in case it has none, the row itself


def read_squad(path: str | Path) -> list[QARecord]:
    """Reads the records of a file, in its order.

    The file, which may be compressed (.gz, .bz2, .xz, .zst), holds the official JSON (``data`` / ``paragraphs`` /
    ``qas``), a JSON list of rows, or a row per line. A row has ``question``, ``context`` (a text) or ``docs`` (texts,
    of which those that contain an answer are required and the others distract), ``answers`` (``{"text": [...]}``, a
    list of texts or of ``{"text": ...}``, or one text) and perhaps ``id``. Questions without an answer (SQuAD 2) are
    left out and counted in the log.

    Raises:
        DataError: on a file that cannot be read, a malformed record, or an answer that is not in its context; the
            message says where and what to do.
    """
    file = expand(path)
    records, unanswerable = [], 0
    for where, number, row in read_rows(file):
        record = squad_record(row, where, number)
        if record is None:
            unanswerable += 1
        else:
            records.append(record)
    if unanswerable:
        log.warning("%s: %d questions without an answer are left out", file, unanswerable)
    if not records:
        raise DataError(f"{file}: no question with an answer in it. Expected SQuAD-format json or jsonl (task.path).")
    check_ids(records)
    return records


def squad_record(row: Any, where: str, number: str) -> QARecord | None:
    """Returns the record of a row (see :func:`read_squad`); None if its question has no answer.

    Args:
        row: the row.
        where: file and line, for messages.
        number: the id of a row that has none.
    """
    if not isinstance(row, Mapping):
        raise DataError(f"{where}: {type(row).__name__}, not an object with 'question', 'context' and 'answers'.")
    question = text_field(row, "question", where)
    texts = _contexts(row, where)
    answers = _answers(row, where)
    if not answers:
        return None
    needed = _needed(texts, [fold(answer) for answer in answers])
    if not needed:
        raise DataError(
            f"{where}: the answer {answers[0]!r} is not in its context. Correct the answer or the context, or remove "
            "the record; a question that the context does not answer has an empty list of answers."
        )
    found = [answer for answer in answers if any(fold(answer) in fold(text) for text in needed)]
    return QARecord(
        id=number if row.get("id") in (None, "") else str(row["id"]),
        question=question,
        answers=tuple(dict.fromkeys([*found, *answers])),
        paragraphs=needed,
        distractors=tuple(text for text in texts if text not in needed),
        where=where,
    )


def _needed(texts: tuple[str, ...], answers: list[str]) -> tuple[str, ...]:
    """Texts that have an answer in them, as words of its own if possible; all of them for yes and no."""
    if all(answer in JUDGMENTS for answer in answers):
        return texts
    whole = tuple(text for text in texts if mentions(fold(text), answers))
    return whole or tuple(text for text in texts if any(answer in fold(text) for answer in answers))


def _contexts(row: Mapping[str, Any], where: str) -> tuple[str, ...]:
    if row.get("docs") is None:
        return (text_field(row, "context", where),)
    docs = row["docs"]
    if not isinstance(docs, list) or not docs:
        raise DataError(f"{where}: 'docs' is {type(docs).__name__}, expected a list with at least one text.")
    return tuple(dict.fromkeys(check_text(text, "docs", where) for text in docs))


def _answers(row: Mapping[str, Any], where: str) -> list[str]:
    """Texts in order, without repetitions."""
    if row.get("is_impossible"):
        return []
    given = row.get("answers", row.get("answer"))
    if given is None:
        raise DataError(f"{where}: no 'answers'. Add a list of texts, an empty one if the context has no answer.")
    if isinstance(given, Mapping):
        given = given.get("text")
    if isinstance(given, str):
        given = [given]
    if not isinstance(given, list):
        raise DataError(f"{where}: 'answers' is {type(given).__name__}: expected texts, or {{'text': [texts]}}.")
    texts = [answer.get("text") if isinstance(answer, Mapping) else answer for answer in given]
    return list(dict.fromkeys(check_text(text, "answers", where) for text in texts))


def read_rows(file: Path) -> Iterator[Row]:
    """Yields the rows of a json or jsonl file, which may be compressed; see :func:`read_squad`."""
    if not file.is_file():
        raise DataError(f"task.path={file}: no such file. Expected SQuAD-format json or jsonl.")
    text = read_whole(file)
    if not text.strip():
        raise DataError(f"{file} is empty. Expected SQuAD-format json or jsonl.")
    if content_suffix(file) == ".jsonl":
        yield from _lines(file, text)
        return
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg != "Extra data":
            raise DataError(f"{file} line {error.lineno}: not JSON ({error.msg}). Correct the file.") from error
        yield from _lines(file, text)  # a row per line, whatever its name
        return
    content = content.get("data", [content]) if isinstance(content, dict) else content
    if not isinstance(content, list):
        raise DataError(f"{file}: expected a list of records, or the official nesting under 'data'.")
    for number, entry in enumerate(content, 1):
        if isinstance(entry, dict) and "paragraphs" in entry:
            yield from _article(entry, f"{file} article {number}", str(number))
        else:
            yield f"{file} record {number}", str(number), entry


def _lines(file: Path, text: str) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            yield f"{file} line {number}", str(number), json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{file} line {number}: not JSON ({error.msg}). Correct or remove the line.") from error


def _article(article: Mapping[str, Any], where: str, number: str) -> Iterator[Row]:
    for place, paragraph in enumerate(_list(article, "paragraphs", where), 1):
        here = f"{where}, paragraph {place}"
        for index, question in enumerate(_list(paragraph, "qas", here), 1):
            at = f"{here}, question {index}"
            if not isinstance(question, Mapping):
                raise DataError(f"{at}: {type(question).__name__}, not an object with 'question' and 'answers'.")
            at += f" (id {question['id']})" if question.get("id") else ""
            yield at, f"{number}-{place}-{index}", {**question, "context": paragraph.get("context")}


def _list(node: Any, name: str, where: str) -> list[Any]:
    if not isinstance(node, Mapping) or not isinstance(node.get(name), list):
        raise DataError(f"{where}: no list {name!r}. Expected data / paragraphs / qas, as in the official files.")
    entries: list[Any] = node[name]
    return entries
