"""Log-likelihoods of answers and of competing values, in one pass over a batch of samples."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from zoo.generation.prompts import read_in_pieces
from zoo.model.decoder import Decoder, DecoderCache
from zoo.model.loss import ROWS


@dataclass
class AnswerTotals:
    """Running totals of an answer ``tokens[start:stop]`` of a sample.

    Attributes:
        start: index of its first token.
        stop: index behind its last token.
        others: token ids of the values that it is compared with.
        total: log-likelihood of the answer, float64.
        greedy: whether all tokens of the answer were the most likely ones.
        totals: log-likelihoods of the other values, float64.
    """

    start: int
    stop: int
    others: tuple[tuple[int, ...], ...]
    total: float = 0.0
    greedy: bool = True
    totals: list[float] = field(init=False)

    def __post_init__(self) -> None:
        self.totals = [0.0] * len(self.others)

    @property
    def branches(self) -> bool:
        """Whether sequences other than the sample's own must be read; if not, the logits of its tokens suffice."""
        return any(len(other) > 1 for other in self.others)

    @property
    def rank(self) -> int:
        """Number of other values that are at least as likely as the answer."""
        return sum(total >= self.total for total in self.totals)

    @property
    def rank_per_token(self) -> int | None:
        """Rank by the mean over tokens, so that short values have no advantage; None if all have the same length."""
        lengths, own = [len(other) for other in self.others], self.stop - self.start
        if all(length == own for length in lengths):
            return None
        return sum(total / length >= self.total / own for total, length in zip(self.totals, lengths))


@dataclass(frozen=True)
class Row:
    """A sample in a batch; its length is what must be read.

    Attributes:
        number: of the sample.
        tokens: ``(length,)`` that are read.
        answers: in order.
        targets: ``(length,)`` what is to be predicted at each place.
    """

    number: int
    tokens: np.ndarray
    answers: list[AnswerTotals]
    targets: np.ndarray

    def __len__(self) -> int:
        return self.answers[-1].stop - 1

    def branching(self) -> list[AnswerTotals]:
        """Returns the answers before which the pass must stop."""
        return [answer for answer in self.answers if answer.branches]


class _Wish(NamedTuple):
    """Ids whose log-probability is wanted after the token at ``column`` of a piece."""

    row: int
    column: int
    ids: Sequence[int]


class _Stage(NamedTuple):
    """Spans of tokens that the rows read, and the answers that begin behind them, None for rows without one."""

    spans: list[tuple[int, int]]
    answers: list[AnswerTotals | None]


def score_rows(decoder: Decoder, rows: list[Row]) -> None:
    """Scores the answers of a batch in place; every token of a sample is read once.

    Where other values of several tokens are to be compared, the pass stops before the answer and continues from copies
    of its cache, once for each value. Rows are padded on the right, which no output depends on. The decoder must be in
    evaluation mode, and gradients off.
    """
    stages = _stages(rows)
    cache = decoder.new_cache(len(rows), _capacity(stages)) if len(stages) > 1 else None
    for spans, answers in stages:
        pieces = [row.tokens[begin:end] for row, (begin, end) in zip(rows, spans)]
        if max(map(len, pieces)):
            _take_answers(decoder, rows, spans, _read(decoder, pieces, cache))
        if cache is not None:
            _take_others(decoder, answers, cache)


def _stages(rows: list[Row]) -> list[_Stage]:
    stages = []
    done = [0] * len(rows)
    for answers in zip_longest(*(row.branching() for row in rows)):
        ends = [answer.start if answer else len(row) for row, answer in zip(rows, answers)]
        stages.append(_Stage(list(zip(done, ends)), list(answers)))
        done = ends
    stages.append(_Stage(list(zip(done, map(len, rows))), [None] * len(rows)))
    return stages


def _capacity(stages: list[_Stage]) -> int:
    """Tokens that a cache must hold with the padding of every piece, so that it need not grow."""
    most = 0
    for spans, answers in stages:
        widest = max(end - begin for begin, end in spans)
        others = [len(other) for answer in answers if answer for other in answer.others]
        begins, ends = zip(*spans)
        most = max(most, max(begins) + widest, max(ends) + max(others, default=0))
    return most


def _read(decoder: Decoder, pieces: Sequence[Sequence[int] | np.ndarray], cache: DecoderCache | None) -> Tensor:
    """Hidden states ``(B, longest, C)`` of pieces, which a cache is continued with."""
    lengths = list(map(len, pieces))
    ids = np.zeros((len(pieces), max(lengths)), dtype=np.int64)
    for row, piece in enumerate(pieces):
        ids[row, : len(piece)] = piece
    device = decoder.embedding.weight.device
    even = cache is None or min(lengths) == max(lengths)
    counts = None if even else torch.tensor(lengths, device=device)
    tokens = torch.from_numpy(ids).to(device)
    if cache is None:
        return decoder.hidden(tokens)
    return torch.cat([hidden for _, hidden in read_in_pieces(decoder, tokens, cache, counts)], 1)


def _look_up(decoder: Decoder, hidden: Tensor, wishes: list[_Wish]) -> Iterator[tuple[list[float], int]]:
    """Log-probabilities of the ids of each wish, from fp32 logits, and the most likely id there."""
    width = max(len(wish.ids) for wish in wishes)
    table = torch.tensor([[*wish.ids, *[0] * (width - len(wish.ids))] for wish in wishes], device=hidden.device)
    row, column = (torch.tensor(at, device=hidden.device) for at in list(zip(*wishes))[:2])
    for start in range(0, len(wishes), ROWS):
        part = slice(start, start + ROWS)
        logits = decoder.head(hidden[row[part], column[part]]).float()
        found = logits.log_softmax(-1).gather(1, table[part])
        yield from zip(found.tolist(), logits.argmax(-1).tolist())


def _take_answers(decoder: Decoder, rows: list[Row], spans: list[tuple[int, int]], hidden: Tensor) -> None:
    """Tokens of answers, and first tokens of others, that are predicted from a piece of each row."""
    wishes, owners = [], []
    for number, (row, (begin, end)) in enumerate(zip(rows, spans)):
        for answer in row.answers:
            for place in range(max(answer.start, begin + 1), min(answer.stop, end + 1)):
                firsts = [other[0] for other in answer.others] if place == answer.start else []
                wishes.append(_Wish(number, place - 1 - begin, [int(row.targets[place]), *firsts]))
                owners.append(answer)
    if not wishes:
        return
    for answer, wish, (found, best) in zip(owners, wishes, _look_up(decoder, hidden, wishes)):
        answer.total += found[0]
        answer.greedy &= best == wish.ids[0]
        for number in range(len(wish.ids) - 1):
            answer.totals[number] += found[1 + number]


def _take_others(decoder: Decoder, answers: list[AnswerTotals | None], cache: DecoderCache) -> None:
    """Further tokens of the others of each row, one other of every row at a time."""
    for number in range(max((len(answer.others) for answer in answers if answer), default=0)):
        others = [answer.others[number] if answer and number < len(answer.others) else () for answer in answers]
        pieces = [other[:-1] for other in others]
        if not any(pieces):
            continue
        hidden = _read(decoder, pieces, copy.deepcopy(cache))
        wishes = [_Wish(row, at, other[at + 1 : at + 2]) for row, other in enumerate(others) for at in _inner(other)]
        for wish, (found, _) in zip(wishes, _look_up(decoder, hidden, wishes)):
            owner = answers[wish.row]
            assert owner is not None
            owner.totals[number] += found[0]


def _inner(other: Sequence[int]) -> range:
    return range(len(other) - 1)
