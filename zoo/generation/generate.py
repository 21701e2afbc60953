"""Sampling from a decoder with its caches: a prefill of the ragged batch, then one token at a time."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from zoo.generation.prompts import PREFILL_TOKENS, read_in_pieces, token_lists

TINY = torch.finfo(torch.float32).tiny  # what is smaller would be 0 as a divisor


@dataclass(frozen=True)
class Sampling:
    """Options that decide how the next token is chosen.

    Attributes:
        temperature: divides the logits; 0 takes the most likely token, and so do numbers near it.
        top_k: keep the k most likely tokens; None for all.
        top_p: keep the smallest set of tokens whose probabilities reach p; None for all.
        seed: seed of the noise; a prompt gets the same tokens alone and in a batch, repeated prompts get different
            ones.
        stop_token: ends a row and is not returned.

    Raises:
        ValueError: on values out of range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0
    stop_token: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature={self.temperature}: expected a finite number >= 0.")
        if self.top_k is not None and not (self.top_k >= 1 and _is_whole(self.top_k)):
            raise ValueError(f"top_k={self.top_k}: expected a whole number >= 1.")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p}: expected a number in (0, 1].")
        for name in ("seed", "stop_token"):
            value = getattr(self, name)
            if value is not None and not _is_whole(value):
                raise ValueError(f"{name}={value!r}: expected a whole number.")


def _is_whole(value: Any) -> bool:
    return hasattr(value, "__index__") and not isinstance(value, bool)


def generate(
    decoder: Any, prompts: Any, max_new_tokens: int, sampling: Sampling, prefill_tokens: int = PREFILL_TOKENS
) -> list[list[int]]:
    """Generates new tokens of each prompt, without the stop token; arguments are those of :func:`stream`."""
    steps = stream(decoder, prompts, max_new_tokens, sampling, prefill_tokens)
    rows: list[list[int]] = [[] for _ in range(len(prompts))]
    for step in steps:
        for row, token in zip(rows, step):
            if token is not None:
                row.append(token)
    return rows


def stream(
    decoder: Any, prompts: Any, max_new_tokens: int, sampling: Sampling, prefill_tokens: int = PREFILL_TOKENS
) -> Iterator[list[int | None]]:
    """Yields the next token of every prompt, None for rows that have ended.

    Each forward pass is in evaluation mode and without gradients; between them the decoder's mode is restored, so that
    streams can be interleaved, abandoned, and mixed with training.

    Args:
        decoder: the decoder.
        prompts: prompts as in :func:`zoo.generation.prompts.token_lists`.
        max_new_tokens: largest number of new tokens of each prompt.
        sampling: how tokens are chosen.
        prefill_tokens: tokens of each prompt that are read in one forward pass.

    Raises:
        ValueError: on prompts or numbers out of range, before anything is computed; and on logits that are not finite,
            with the step.
    """
    rows = token_lists(prompts, decoder.config.vocab_size)
    if not _is_whole(max_new_tokens) or max_new_tokens < 0:
        raise ValueError(f"max_new_tokens={max_new_tokens}: expected a whole number >= 0.")
    if not _is_whole(prefill_tokens) or prefill_tokens < 1:
        raise ValueError(f"prefill_tokens={prefill_tokens}: expected a whole number >= 1.")
    return _steps(decoder, rows, max_new_tokens, sampling, prefill_tokens)


def _steps(
    decoder: Any, prompts: list[list[int]], max_new_tokens: int, sampling: Sampling, prefill_tokens: int
) -> Iterator[list[int | None]]:
    if not prompts or not max_new_tokens:
        return
    cache = decoder.new_cache(len(prompts), max(map(len, prompts)) + max_new_tokens)
    generators, live = _generators(prompts, sampling.seed), [True] * len(prompts)
    with evaluation_mode(decoder), torch.no_grad():
        logits = _prefill(decoder, prompts, cache, prefill_tokens)
    for step in range(max_new_tokens):
        tokens = choose(logits.float(), sampling, generators, f"at new token {step}, of prompt")
        chosen = tokens.tolist()
        live = [alive and token != sampling.stop_token for alive, token in zip(live, chosen)]
        yield [token if alive else None for alive, token in zip(live, chosen)]
        if not any(live) or step == max_new_tokens - 1:
            return
        with evaluation_mode(decoder), torch.no_grad():
            logits = decoder(tokens[:, None], cache=cache)[:, 0]


def _prefill(decoder: Any, prompts: list[list[int]], cache: Any, piece: int) -> Tensor:
    """Logits behind the last token of each prompt, ``(B, V)``."""
    device = decoder.embedding.weight.device
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    longest = max(map(len, prompts))
    ids = torch.tensor([prompt + [0] * (longest - len(prompt)) for prompt in prompts], device=device)
    even = all(len(prompt) == longest for prompt in prompts)
    last = None
    for begin, hidden in read_in_pieces(decoder, ids, cache, None if even else lengths, piece):
        at = lengths - 1 - begin
        found = torch.take_along_dim(hidden, at.clamp(0, hidden.shape[1] - 1)[:, None, None], 1)[:, 0]
        last = found if last is None else torch.where((at >= 0)[:, None], found, last)
    return decoder.head(last)


@contextmanager
def evaluation_mode(module: Any) -> Iterator[None]:
    """Context manager for evaluation mode, after which each module has the mode that it had before."""
    modes = [(part, part.training) for part in module.modules()]
    if not any(training for _, training in modes):
        yield
        return
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:  # a module comes before its parts
            part.train(training)


def _generators(prompts: list[list[int]], seed: int) -> list[torch.Generator]:
    """Noise of a row depends on the seed and on how often its prompt came before, never on the other prompts."""
    seen: Counter[tuple[int, ...]] = Counter()
    generators = []
    for prompt in map(tuple, prompts):
        generators.append(torch.Generator().manual_seed((seed * 1_000_003 + seen[prompt]) % 2**63))
        seen[prompt] += 1
    return generators


def choose(logits: Tensor, sampling: Sampling, generators: list[torch.Generator], where: str = "in row") -> Tensor:
    """Chooses one token per row of ``logits`` ``(B, V)``.

    Args:
        logits: ``(B, V)``.
        sampling: how tokens are chosen.
        generators: random generator of each row.
        where: words before the index of the row, for messages.

    Returns:
        Token ids ``(B,)``.

    Raises:
        ValueError: on a row whose largest logit is not finite.
    """
    top = logits.amax(-1)
    if wrong := [row for row, value in enumerate(top.tolist()) if not math.isfinite(value)]:
        raise ValueError(
            f"the largest logit {where} {wrong[0]} is {top[wrong[0]]:.0f}: the model computes no numbers, its weights "
            "may have diverged in training or their dtype may be too small."
        )
    if sampling.temperature == 0:
        return logits.argmax(-1)
    logits = (logits - top[:, None]) / max(sampling.temperature, TINY)  # 0 for the best, whatever the temperature
    if sampling.top_k is not None and sampling.top_k < logits.shape[-1]:
        smallest = logits.topk(sampling.top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < smallest, -torch.inf)
    if sampling.top_p is not None and sampling.top_p < 1:
        ordered, order = logits.softmax(-1).sort(dim=-1, descending=True)
        beyond = ordered.cumsum(-1) - ordered >= sampling.top_p
        beyond[:, 0] = False  # a number that is 0 in fp32
        logits = logits.masked_fill(torch.zeros_like(beyond).scatter(1, order, beyond), -torch.inf)
    noise = torch.stack([torch.rand(logits.shape[-1], generator=g) for g in generators]).to(logits.device)
    return (logits - (-noise.clamp(min=1e-20).log()).log()).argmax(-1)
