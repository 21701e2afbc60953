"""Completions: the text that a decoder adds to a prompt, up to a stop string."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from zoo.evaluation.scoring.documents import batch_pieces
from zoo.generation import Sampling, stream
from zoo.generation.text_stream import TextStream
from zoo.model.decoder import Decoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
REPEAT = 1_000_003  # distance between the seeds of a prompt that comes again


@dataclass(frozen=True)
class CompletionOptions:
    """Options of how a prompt is completed.

    Attributes:
        max_new_tokens: largest number of new tokens.
        until: strings before which the text ends.
        temperature: as in :class:`zoo.generation.Sampling`; 0 is greedy.
        top_k: as in :class:`zoo.generation.Sampling`.
        top_p: as in :class:`zoo.generation.Sampling`.
    """

    max_new_tokens: int
    until: tuple[str, ...] = ()
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None


def read_options(given: Mapping[str, Any], max_new_tokens: int) -> tuple[CompletionOptions, list[str]]:
    """Reads options from the generation keywords of lm-evaluation-harness.

    Without ``do_sample``, a temperature above 0 means sampling. The end of a document always ends a completion.

    Args:
        given: generation keywords.
        max_new_tokens: largest number of new tokens where the keywords do not say.

    Returns:
        The options, and the names of keywords that have no effect here.
    """
    rest = dict(given)
    until = rest.pop("until", None) or ()
    lengths = [rest.pop(name, None) for name in LENGTHS]
    temperature, sample = rest.pop("temperature", None), rest.pop("do_sample", None)
    top_k, top_p = rest.pop("top_k", None), rest.pop("top_p", None)
    if sample is None:
        sample = bool(temperature)
    options = CompletionOptions(
        max_new_tokens=next((int(length) for length in lengths if length is not None), max_new_tokens),
        until=tuple(text for text in ([until] if isinstance(until, str) else until) if text),
        temperature=float(1.0 if temperature is None else temperature) if sample else 0.0,
        top_k=int(top_k) if sample and top_k and int(top_k) > 0 else None,
        top_p=float(top_p) if sample and top_p is not None else None,
    )
    return options, sorted(rest)


@dataclass(frozen=True)
class _Prompt:
    """A prompt and its number; its length is that of the sequence when it is completed."""

    number: int
    tokens: list[int]
    new: int

    def __len__(self) -> int:
        return len(self.tokens) + self.new


def complete_prompts(
    decoder: Decoder,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[list[int]],
    options: CompletionOptions,
    seed: int = 0,
    batch_tokens: int = 8_192,
    progress: Callable[[int], None] = lambda prompts: None,
    keep: Callable[[Any, Callable[[], dict[str, Any]]], dict[str, Any]] = lambda key, make: make(),
) -> list[str]:
    """Completes prompts; the text of each does not depend on the other prompts of its batch.

    With sampling, a prompt that occurs several times gets other text each time.

    Args:
        decoder: the decoder.
        tokenizer: its tokenizer.
        prompts: token ids of each prompt.
        options: how prompts are completed.
        seed: seed of the sampling.
        batch_tokens: tokens of a batch, padding and new tokens included.
        progress: called with the number of prompts completed since its last call.
        keep: called with a key of what a batch's texts depend on and a function that makes them; returns them, or
            stored ones of the same key.

    Returns:
        The text added to each prompt.

    Raises:
        ValueError: on an empty prompt, a token outside the vocabulary, or sampling options out of range.
    """
    texts = [""] * len(prompts)
    for repeat, distinct in enumerate(_distinct(prompts, options.max_new_tokens)):
        sampling = Sampling(
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            seed=seed + REPEAT * repeat,
            stop_token=tokenizer.eos_token_id,
        )
        for batch in batch_pieces(distinct, batch_tokens):
            rows = [prompt.tokens for prompt in batch]
            make = partial(_complete, decoder, tokenizer, rows, options, sampling)
            made = keep(["texts", astuple(options), sampling.seed, rows], make)
            for prompt, text in zip(batch, made["texts"]):
                texts[prompt.number] = text
            progress(len(batch))
    return texts


def _distinct(prompts: Sequence[list[int]], new: int) -> list[list[_Prompt]]:
    """Prompts that come for the first time, those that come for the second time, and so on."""
    times: dict[tuple[int, ...], int] = defaultdict(int)
    rounds: list[list[_Prompt]] = []
    for number, tokens in enumerate(prompts):
        repeat = times[tuple(tokens)]
        times[tuple(tokens)] += 1
        if repeat == len(rounds):
            rounds.append([])
        rounds[repeat].append(_Prompt(number, tokens, new))
    return rounds


def _complete(
    decoder: Decoder,
    tokenizer: PreTrainedTokenizerFast,
    prompts: list[list[int]],
    options: CompletionOptions,
    sampling: Sampling,
) -> dict[str, list[str]]:
    """The ``texts`` that complete one batch; it ends when the last row has come to a stop string."""
    texts = [""] * len(prompts)
    streams = [TextStream(tokenizer) for _ in prompts]
    live = [True] * len(prompts)
    for step in stream(decoder, prompts, options.max_new_tokens, sampling):
        for row, token in enumerate(step):
            live[row] &= token is not None
            if not live[row] or token is None:
                continue
            texts[row] += streams[row].push(token)
            live[row] = not any(text in texts[row] for text in options.until)
        if not any(live):
            break
    return {"texts": [cut_text(text + stream.finish(), options.until) for text, stream in zip(texts, streams)]}


def cut_text(text: str, until: Iterable[str]) -> str:
    """Cuts text before the first of the stop strings."""
    return text[: min((at for at in map(text.find, until) if at >= 0), default=len(text))]
