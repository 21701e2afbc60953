"""Composition of records to a length: the required text among distractors, followed by the question."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain

from zoo.data.qa.distractors import DistractorPool
from zoo.data.qa.records import QARecord
from zoo.data.recall.compose import Facts, compose
from zoo.data.recall.encoder import Encoder
from zoo.data.recall.samples import Question, RecallError, Sample

TRUNCATIONS = ("error", "middle")
SENTENCE_END = re.compile(r"[.!?][\"')\]\u201d\u2019]*\s+")


@dataclass
class _Given:
    """A haystack of one unit that is exactly as long as what is asked of it."""

    tokens: tuple[int, ...] = ()
    name: str = "given"
    fingerprint: str = "given"

    def units(self, rng: random.Random) -> Iterator[tuple[int, ...]]:
        """See :class:`zoo.data.recall.haystack.Haystack`."""
        yield self.tokens


def compose_record(
    record: QARecord,
    pool: DistractorPool,
    encoder: Encoder,
    rng: random.Random,
    length: int | None,
    depth: float | None,
    *,
    fill: bool = True,
    truncate: str = "error",
) -> Sample:
    """Composes a record: whole distractors around its required text, and the end of one more in front.

    Behind the required text the last distractor may stop at the end of a sentence: ``depth`` is met up to a sentence.
    Where several texts are required they are placed anywhere; a document that is to be completed always comes last.

    Args:
        record: the record.
        pool: pool of distractors.
        encoder: encoder of the text.
        rng: random numbers of the sample.
        length: tokens in all; None for the required text and the question alone.
        depth: share of the distractors before the required text, 0..1; None for any.
        fill: add distractors; without it ``length`` is an upper bound.
        truncate: what happens to a required text that is too long: "error", or "middle" (Bai et al., 2023, "LongBench",
            arXiv:2308.14508: as many tokens of its head as of its tail are kept).

    Raises:
        RecallError: if the record does not fit, or if there are too few distractors; the message says which length is
            possible.
    """
    question = ask(record, pool.others(record))
    facts = Facts(lines_of(record), (question,), placed=None, ordered=False)
    needed = needed_tokens(record, encoder)
    if length is None or (needed <= length and not fill):
        facts = replace(facts, ordered=True)
        made = compose(facts, encoder, _Given(), rng, None, None)
        return Sample(record.id, made.tokens, made.answers)
    if needed > length:
        return _shortened(record, facts, encoder, rng, length, truncate)
    texts = pool.texts(record, rng)
    if len(facts.facts) > 1:
        facts = replace(facts, filler=lambda _: _lines(texts, record, encoder, needed, length))
        made = compose(facts, encoder, _Given(), rng, length, None)
        return Sample(record.id, made.tokens, made.answers)
    share = 1.0 if record.kind == "completion" else rng.random() if depth is None else depth
    behind, texts = _behind(texts, round((1 - share) * (length - needed)), encoder)
    used = sum(len(encoder(line)) for line in behind)
    facts = replace(
        facts,
        facts=(*facts.facts, *behind),
        ordered=True,
        placed=0,
        filler=lambda _: _lines(texts, record, encoder, needed + used, length),
    )
    made = compose(facts, encoder, _Given(), rng, length, 1.0)
    context = made.answers[0].start - len(encoder(question.prompt)) - 1
    before = context - used - len(encoder(facts.facts[0]))
    return Sample(record.id, made.tokens, made.answers, before / context)


def compose_question(record: QARecord, pool: DistractorPool, encoder: Encoder) -> Sample:
    """Composes the question of a record alone, without any text that answers it."""
    facts = Facts((), (ask(record, pool.others(record)),), placed=None)
    made = compose(facts, encoder, _Given(), random.Random(0), None, None)
    return Sample(record.id, made.tokens, made.answers)


def ask(record: QARecord, others: Iterable[str] = ()) -> Question:
    """Returns the question of a record; its wrong values are the other options of a choice, else ``others``."""
    right = record.answers[0]
    wrong = [option for option in record.options if option != right] if record.kind == "choice" else others
    prompt = record.question if record.kind == "completion" else f"Question: {record.question}\nAnswer:"
    return Question(prompt, f" {right}", tuple(f" {value}" for value in wrong), record.answers)


def lines_of(record: QARecord) -> tuple[str, ...]:
    """Returns the required texts as lines; a document that is to be completed has no end of a line."""
    if record.kind == "completion":
        return record.paragraphs
    return tuple(f"{text}\n" for text in record.paragraphs)


def needed_tokens(record: QARecord, encoder: Encoder, text: bool = True) -> int:
    """Number of tokens of the document token, the question, the answer and, with ``text``, the required texts."""
    question = ask(record)
    pieces = [question.prompt, question.answer, *(lines_of(record) if text else ())]
    return 1 + sum(len(encoder(piece)) for piece in pieces)


def _shortened(
    record: QARecord, facts: Facts, encoder: Encoder, rng: random.Random, length: int, truncate: str
) -> Sample:
    least = needed_tokens(record, encoder, text=truncate == "error")
    if truncate == "error" or least > length:
        what = "its text, question and answer need" if truncate == "error" else "its question and answer alone need"
        raise RecallError(
            f"{record.where or record.id}: {what} {least} tokens with this tokenizer, more than length={length}. "
            "Choose longer task.lengths, or leave such records out."
        )
    tokens = tuple(chain.from_iterable(encoder(line) for line in facts.facts))
    room = length - least
    tail = room // 2
    kept = tokens[: room - tail] + tokens[len(tokens) - tail :]
    made = compose(replace(facts, facts=()), encoder, _Given(kept), rng, length, None)
    return Sample(record.id, made.tokens, made.answers, None, len(tokens) - len(kept))


def _behind(texts: Iterator[str], budget: int, encoder: Encoder) -> tuple[list[str], Iterator[str]]:
    """Lines within a budget of tokens, the last of them perhaps the head of a text; and the texts that are left."""
    lines: list[str] = []
    while budget > 0:
        text = next(texts, None)
        if text is None:
            break
        line = f"{text}\n"
        if len(encoder(line)) > budget:
            end = _fitting(text, budget, encoder)
            if end == 0:
                return lines, chain([text], texts)
            return [*lines, f"{text[:end].rstrip()}\n"], chain(texts, [text[end:]])
        lines.append(line)
        budget -= len(encoder(line))
    return lines, texts


def _fitting(text: str, budget: int, encoder: Encoder) -> int:
    """Where the last sentence ends whose head of the text fits a budget as a line; 0 if none does."""
    best = 0
    for match in SENTENCE_END.finditer(text):
        if len(encoder(f"{text[: match.end()].rstrip()}\n")) > budget:
            break
        best = match.end()
    return best


def _lines(texts: Iterable[str], record: QARecord, encoder: Encoder, reached: int, length: int) -> Iterator[str]:
    for text in texts:
        line = f"{text}\n"
        reached += len(encoder(line))
        yield line
    raise RecallError(
        f"{record.where or record.id}: with all texts of the set that do not answer it, this record has {reached} "
        f"tokens with this tokenizer, fewer than length={length}. "
        "Choose shorter task.lengths, or a set with more texts."
    )
