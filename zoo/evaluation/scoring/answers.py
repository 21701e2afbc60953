"""Scores of answers that distinguish even small models: likelihood, exact match, rank among values of the context."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from zoo.data.recall.samples import Answer, Sample
from zoo.evaluation.scoring.answer_passes import AnswerTotals, Row, score_rows
from zoo.evaluation.scoring.documents import batch_pieces, evaluating
from zoo.generation.generate import Sampling, stream
from zoo.model.decoder import Decoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class AnswerScore:
    """How well a decoder knows an answer.

    Attributes:
        nats: negative log-likelihood of the answer's tokens, each after the true ones.
        tokens: number of the answer's tokens.
        correct: whether each was the most likely token, which is when greedy decoding gives exactly this answer.
        rank: number of other values that are at least as likely as the answer, 0 for the best; None if there are none.
        rank_per_token: rank by the likelihood per token; None if all values have the same number of tokens.
        choices: number of values compared, the answer included; a guess has rank 0 with probability 1 / choices.
        generated: text that greedy decoding gives, up to the end of the line; None if it was not asked for.
    """

    nats: float
    tokens: int
    correct: bool
    rank: int | None
    rank_per_token: int | None
    choices: int
    generated: str | None = None


def score_samples(
    decoder: Decoder,
    samples: Sequence[Sample],
    *,
    batch_tokens: int = 8_192,
    choices: int = 8,
    generate: int = 0,
    tokenizer: PreTrainedTokenizerFast | None = None,
    progress: Callable[[int], None] = lambda samples: None,
) -> list[list[AnswerScore]]:
    """Scores all answers of all samples; no score depends on the batch that its sample is in.

    Likelihoods of other values are of all their tokens, in place of the answer. Each answer is generated after the true
    tokens before it, in as many tokens as it has, or ``generate`` if that is more.

    Args:
        decoder: the decoder.
        samples: the samples.
        batch_tokens: inputs per forward pass.
        choices: number of values compared, the answer included: the first of its ``others`` that differ.
        generate: number of tokens to generate, 0 for none.
        tokenizer: tokenizer of the samples, to generate.
        progress: called with the number of samples scored since its last call.

    Raises:
        ValueError: on numbers out of range, answers that are not in their sample, or tokens of another vocabulary.
    """
    if choices < 1 or generate < 0:
        raise ValueError(f"choices={choices}, generate={generate}: expected choices >= 1 and generate >= 0.")
    if generate and tokenizer is None:
        raise ValueError(f"generate={generate} without a tokenizer: pass the one of the samples.")
    rows = [_row(number, sample, choices, decoder.config.vocab_size) for number, sample in enumerate(samples)]
    progress(sum(not row.answers for row in rows))
    writer = _Writer(decoder, tokenizer, generate, batch_tokens) if tokenizer is not None and generate else None
    scores: list[list[AnswerScore]] = [[] for _ in samples]
    # Whether the pass goes through a cache must not depend on the other samples of a batch: it changes the rounding.
    kinds = [[row for row in rows if row.answers and bool(row.branching()) == through] for through in (False, True)]
    with evaluating(decoder):
        for batch in (batch for kind in kinds for batch in batch_pieces(kind, batch_tokens)):
            score_rows(decoder, batch)
            texts = writer.write(batch) if writer is not None else {}
            for row in batch:
                pairs = enumerate(row.answers)
                scores[row.number] = [_score(answer, texts.get((row.number, at))) for at, answer in pairs]
            progress(len(batch))
    return scores


def _row(number: int, sample: Sample, choices: int, vocab_size: int) -> Row:
    answers, before = [], 1
    for answer in sample.answers:
        if not before <= answer.start < answer.stop <= len(sample):
            raise ValueError(
                f"sample {sample.id}: the answer {answer.start}:{answer.stop} is not in its {len(sample)} tokens, "
                "behind the first token and the answer before."
            )
        before = answer.stop
        answers.append(AnswerTotals(answer.start, answer.stop, _others(sample, answer, choices)))
    given = [*sample.tokens.tolist(), *sample.targets.tolist()]
    ids = [*given, *(token for answer in answers for other in answer.others for token in other)]
    if ids and not 0 <= min(ids) <= max(ids) < vocab_size:
        raise ValueError(f"sample {sample.id} has a token outside the vocabulary of {vocab_size}: another tokenizer's?")
    return Row(number, sample.tokens, answers, sample.targets)


def _others(sample: Sample, answer: Answer, choices: int) -> tuple[tuple[int, ...], ...]:
    own = tuple(sample.targets[answer.start : answer.stop].tolist())
    others = [other for other in dict.fromkeys(answer.others) if other != own]
    if not all(others):
        raise ValueError(f"sample {sample.id}: a value to compare with the answer has no tokens.")
    return tuple(others[: choices - 1])


def _score(answer: AnswerTotals, generated: str | None) -> AnswerScore:
    rank, per_token = (answer.rank, answer.rank_per_token) if answer.others else (None, None)
    tokens = answer.stop - answer.start
    return AnswerScore(-answer.total, tokens, answer.greedy, rank, per_token, 1 + len(answer.others), generated)


@dataclass(frozen=True)
class _Prompt:
    """What stands before an answer; its length is that of the sequence when it is written."""

    key: tuple[int, int]
    tokens: list[int]
    new: int

    def __len__(self) -> int:
        return len(self.tokens) + self.new


class _Writer:
    """Generates answers."""

    def __init__(self, decoder: Decoder, tokenizer: PreTrainedTokenizerFast, generate: int, batch_tokens: int) -> None:
        self.decoder, self.tokenizer, self.generate, self.batch_tokens = decoder, tokenizer, generate, batch_tokens
        self._ends_line = lru_cache(None)(lambda token: "\n" in str(tokenizer.decode([token])))

    def write(self, rows: list[Row]) -> dict[tuple[int, int], str]:
        """Text for each answer of each row, by the number of the row and the place of the answer."""
        prompts = [
            _Prompt(
                (row.number, at), row.tokens[: answer.start].tolist(), max(self.generate, answer.stop - answer.start)
            )
            for row in rows
            for at, answer in enumerate(row.answers)
        ]
        made: dict[tuple[int, int], str] = {}
        for batch in batch_pieces(prompts, self.batch_tokens):
            for prompt, tokens in zip(batch, self._continue(batch)):
                text = str(self.tokenizer.decode(tokens, skip_special_tokens=True))
                made[prompt.key] = text.split("\n")[0]
        return made

    def _continue(self, prompts: list[_Prompt]) -> list[list[int]]:
        greedy: dict[str, Any] = {"temperature": 0, "stop_token": self.tokenizer.eos_token_id}
        made: list[list[int]] = [[] for _ in prompts]
        live = [True] * len(prompts)
        steps = stream(self.decoder, [p.tokens for p in prompts], max(p.new for p in prompts), Sampling(**greedy))
        for step in steps:
            for row, token in enumerate(step):
                if live[row] and token is not None:
                    made[row].append(token)
                live[row] &= token is not None and not self._ends_line(token) and len(made[row]) < prompts[row].new
            if not any(live):
                break
        return made
