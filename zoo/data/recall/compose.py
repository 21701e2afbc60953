"""Composition of facts, filler and questions to an exact number of tokens."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from zoo.data.recall.encoder import Encoder
from zoo.data.recall.haystack import Haystack
from zoo.data.recall.samples import Answer, Question, RecallError

Units = Iterator[tuple[int, ...]]


@dataclass(frozen=True)
class Facts:
    """A sample before it has a length.

    Attributes:
        facts: lines of the context that matter, each with its end of line.
        questions: asked at the end, one after the other.
        instruction: text before the context.
        placed: index of the fact whose depth can be chosen; None if the facts only have an order.
        ordered: whether facts keep their order; else those that are not placed may stand anywhere.
        filler: endless lines around the facts; None for the haystack.
    """

    facts: tuple[str, ...]
    questions: tuple[Question, ...]
    instruction: str = ""
    placed: int | None = 0
    ordered: bool = True
    filler: Callable[[random.Random], Iterator[str]] | None = None


@dataclass(frozen=True)
class Composed:
    """A composed sample.

    Attributes:
        tokens: tokens of the sample.
        answers: places of the answers.
        depth: depth of the placed fact among the whole lines of the context.
    """

    tokens: np.ndarray
    answers: tuple[Answer, ...]
    depth: float | None


def compose(
    facts: Facts, encoder: Encoder, haystack: Haystack, rng: random.Random, length: int | None, depth: float | None
) -> Composed:
    """Composes a sample of exactly ``length`` tokens, the document token and all answers included.

    The context is filled with whole lines; the remaining tokens are the end of one more line, in front.

    Args:
        facts: facts and questions of the sample.
        encoder: encoder of the text.
        haystack: source of filler.
        rng: random numbers of the sample.
        length: tokens in all; None for no filler at all.
        depth: depth of the placed fact in the filler, 0 first, 1 last; None for anywhere.

    Raises:
        RecallError: if the facts and questions alone are longer.
    """
    context = [encoder(fact) for fact in facts.facts]
    head, tail = encoder(facts.instruction), [(encoder(q.prompt), encoder(q.answer)) for q in facts.questions]
    fixed = 1 + len(head) + sum(map(len, context)) + sum(len(p) + len(a) for p, a in tail)
    if length is not None and fixed > length:
        raise RecallError(f"facts and questions need {fixed} tokens with this tokenizer, more than length={length}")
    units = _units(facts, encoder, haystack, rng)
    filler, rest = _fill(units, 0 if length is None else length - fixed)
    places = _places(facts, len(filler), depth, rng)
    body: list[tuple[int, ...]] = []
    for index in range(len(filler) + 1):
        body += [context[fact] for fact in places.get(index, [])]
        body += filler[index : index + 1]
    tokens = [encoder.document_token, *rest, *head]
    begin = len(tokens)
    for unit in body:
        tokens += unit
    reached = None
    if facts.placed is not None and context:
        room = len(tokens) - begin - len(context[facts.placed])
        reached = _position(places, filler, context, facts.placed) / max(room, 1)
    return Composed(*_ask(tokens, facts, tail, encoder), reached)


def _units(facts: Facts, encoder: Encoder, haystack: Haystack, rng: random.Random) -> Units:
    if facts.filler is None:
        return haystack.units(rng)
    return (encoder(line) for line in facts.filler(rng))


def _fill(units: Units, budget: int) -> tuple[list[tuple[int, ...]], tuple[int, ...]]:
    """Whole units within a budget of tokens, and the end of the next one for the rest."""
    filler: list[tuple[int, ...]] = []
    empty = 0
    while budget > 0:
        unit = next(units)
        empty = 0 if unit else empty + 1
        if empty > 1000:
            raise RecallError("the filler has no tokens")
        if len(unit) > budget:
            return filler, unit[-budget:]
        filler.append(unit)
        budget -= len(unit)
    return filler, ()


def _places(facts: Facts, units: int, depth: float | None, rng: random.Random) -> dict[int, list[int]]:
    """Facts, by index, that stand before each unit of filler (``units`` itself: after the last)."""
    count = len(facts.facts)
    slots = [rng.randint(0, units) for _ in range(count)]
    if facts.placed is not None and count and depth is not None:
        slots[facts.placed] = round(depth * units)
    order = list(range(count))
    if facts.ordered:
        slots = _in_order(slots, facts.placed if depth is not None else None)
    else:
        rng.shuffle(order)
    among = None if facts.ordered or depth is None else facts.placed
    places: dict[int, list[int]] = {}
    for fact in order:
        if fact != among:
            places.setdefault(slots[fact], []).append(fact)
    if among is not None and depth is not None and count:
        _insert(places, among, round(depth * (units + count - 1)))
    return places


def _insert(places: dict[int, list[int]], fact: int, before: int) -> None:
    """Gives a fact its place behind so many units and other facts."""
    slot = 0
    while before > len(places.get(slot, [])):
        before -= len(places.get(slot, [])) + 1
        slot += 1
    places.setdefault(slot, []).insert(before, fact)


def _in_order(slots: list[int], fixed: int | None) -> list[int]:
    """Slots sorted; the one at index ``fixed`` keeps its value and the others stay on their side of it."""
    if fixed is None:
        return sorted(slots)
    at = slots[fixed]
    before = sorted(min(slot, at) for slot in slots[:fixed])
    return [*before, at, *sorted(max(slot, at) for slot in slots[fixed + 1 :])]


def _position(
    places: dict[int, list[int]], filler: list[tuple[int, ...]], context: list[tuple[int, ...]], wanted: int
) -> int:
    """Tokens of the context before fact ``wanted``."""
    before = 0
    for index in range(len(filler) + 1):
        for fact in places.get(index, []):
            if fact == wanted:
                return before
            before += len(context[fact])
        before += len(filler[index]) if index < len(filler) else 0
    raise AssertionError("every fact has a place")


def _ask(
    tokens: list[int], facts: Facts, tail: list[tuple[tuple[int, ...], tuple[int, ...]]], encoder: Encoder
) -> tuple[np.ndarray, tuple[Answer, ...]]:
    answers = []
    for question, (prompt, answer) in zip(facts.questions, tail):
        start = len(tokens) + len(prompt)
        tokens = [*tokens, *prompt, *answer]
        others = tuple(dict.fromkeys(encoder(other) for other in question.others if other != question.answer))
        references = question.references or (question.answer.strip(),)
        answers.append(Answer(start, len(tokens), others, references))
    return np.array(tokens, dtype=np.int64), tuple(answers)
