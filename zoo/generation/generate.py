"""Sampling from a decoder with its caches: one prefill of the ragged batch, then one token at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        temperature: divides the logits; 0 takes the most likely token.
        top_k: keep the k most likely tokens. top_p: keep the smallest set of tokens whose probabilities reach p.
        seed: of the noise; a prompt gets the same tokens alone and in a batch, repeated prompts get different ones.
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
        if not self.temperature >= 0:
            raise ValueError(f"temperature={self.temperature}: expected a number >= 0.")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k={self.top_k}: expected a number >= 1.")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p}: expected a number in (0, 1].")


def generate(decoder: Any, prompts: list[list[int]], max_new_tokens: int, sampling: Sampling) -> list[list[int]]:
    """New tokens of each prompt, without the stop token."""
    rows: list[list[int]] = [[] for _ in prompts]
    for step in stream(decoder, prompts, max_new_tokens, sampling):
        for row, token in zip(rows, step):
            if token is not None:
                row.append(token)
    return rows


def stream(
    decoder: Any, prompts: list[list[int]], max_new_tokens: int, sampling: Sampling
) -> Iterator[list[int | None]]:
    """Yields the next token of every prompt, None for rows that have ended.

    Raises:
        ValueError: on an empty prompt, or a token outside the vocabulary.
    """
    _check(decoder, prompts, max_new_tokens)
    if not prompts or max_new_tokens == 0:
        return
    with evaluation_mode(decoder):
        device = decoder.embedding.weight.device
        lengths = torch.tensor([len(p) for p in prompts], device=device)
        longest = int(lengths.max())
        ids = torch.tensor([p + [0] * (longest - len(p)) for p in prompts], device=device)
        cache = decoder.new_cache(len(prompts), longest + max_new_tokens)
        generators = _generators(prompts, sampling.seed)
        with torch.no_grad():
            even = len(set(map(len, prompts))) == 1
            hidden = decoder.hidden(ids, cache=cache, lengths=None if even else lengths)
            logits = decoder.head(hidden[torch.arange(len(prompts), device=device), lengths - 1])
        live = [True] * len(prompts)
        for step in range(max_new_tokens):
            tokens = choose(logits.float(), sampling, generators)
            chosen = tokens.tolist()
            live = [alive and token != sampling.stop_token for alive, token in zip(live, chosen)]
            yield [token if alive else None for alive, token in zip(live, chosen)]
            if not any(live) or step == max_new_tokens - 1:
                return
            with torch.no_grad():
                logits = decoder(tokens[:, None], cache=cache)[:, 0]


@contextmanager
def evaluation_mode(module: Any) -> Iterator[None]:
    """Evaluation mode; the mode that the module was in comes back."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)


def _check(decoder: Any, prompts: list[list[int]], max_new_tokens: int) -> None:
    size = decoder.config.vocab_size
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens={max_new_tokens}: expected a number >= 0.")
    for i, prompt in enumerate(prompts):
        if not prompt:
            raise ValueError(f"prompt {i} is empty: start it with the document token.")
        if min(prompt) < 0 or max(prompt) >= size:
            raise ValueError(f"prompt {i} has a token outside the vocabulary of {size}: is it of another tokenizer?")


def _generators(prompts: list[list[int]], seed: int) -> list[torch.Generator]:
    """Noise of a row depends on the seed and on how often its prompt came before, never on the other prompts."""
    seen: Counter[tuple[int, ...]] = Counter()
    generators = []
    for prompt in map(tuple, prompts):
        generators.append(torch.Generator().manual_seed((seed * 1_000_003 + seen[prompt]) % 2**63))
        seen[prompt] += 1
    return generators


def choose(logits: Tensor, sampling: Sampling, generators: list[torch.Generator]) -> Tensor:
    """One token per row of ``logits`` (B, V) -> ``(B,)``."""
    if sampling.temperature == 0:
        return logits.argmax(-1)
    logits = logits / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < logits.shape[-1]:
        smallest = logits.topk(sampling.top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < smallest, -torch.inf)
    if sampling.top_p is not None and sampling.top_p < 1:
        ordered, order = logits.softmax(-1).sort(dim=-1, descending=True)
        beyond = ordered.cumsum(-1) - ordered >= sampling.top_p
        logits = logits.masked_fill(torch.zeros_like(beyond).scatter(1, order, beyond), -torch.inf)
    noise = torch.stack([torch.rand(logits.shape[-1], generator=g) for g in generators]).to(logits.device)
    return (logits - (-noise.clamp(min=1e-20).log()).log()).argmax(-1)
