"""Prompts in the forms that users have them in, and their prefill."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

PREFILL_TOKENS = 2_048


def token_lists(prompts: Any, vocab_size: int) -> list[list[int]]:
    """Converts prompts to lists of token ids.

    Args:
        prompts: any sequence of prompts, or a 2-D tensor or array of them; a prompt is a list, a tuple, or a 1-D tensor
            or array of integers.
        vocab_size: exclusive upper bound of the ids.

    Raises:
        ValueError: on anything else, an empty prompt, or ids outside the vocabulary.
    """
    try:
        count = -1 if isinstance(prompts, str | bytes | Mapping) else len(prompts)
        each = [prompts[number] for number in range(count)]
    except TypeError:
        count = -1
    if count < 0:
        raise ValueError(f"prompts={_short(prompts)}: expected a list of prompts, each a list of token ids.")
    return [_token_list(number, prompt, vocab_size) for number, prompt in enumerate(each)]


def _token_list(number: int, prompt: Any, vocab_size: int) -> list[int]:
    try:
        ids = prompt if isinstance(prompt, Tensor) else torch.tensor(getattr(prompt, "tolist", lambda: prompt)())
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise ValueError(
            f"prompt {number} is {_short(prompt)}: expected token ids, as a tokenizer gives them."
        ) from None
    if ids.dim() == 0:
        raise ValueError(f"prompt {number} is {_short(prompt)}: expected a list of token ids; one prompt is [prompt].")
    if ids.dim() > 1:
        raise ValueError(f"prompt {number} has {ids.dim()} dimensions: expected a list of token ids for each prompt.")
    if not ids.numel():
        raise ValueError(f"prompt {number} is empty: start it with the document token.")
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise ValueError(f"prompt {number} is of {ids.dtype}: expected token ids, which are integers.")
    tokens = ids.tolist()
    if wrong := [token for token in tokens if not 0 <= token < vocab_size]:
        raise ValueError(
            f"prompt {number} has a token outside the vocabulary of {vocab_size}, {wrong[0]}: "
            "is it of another tokenizer?"
        )
    return tokens


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def read_in_pieces(
    decoder: Any, ids: Tensor, cache: Any, lengths: Tensor | None = None, piece: int = PREFILL_TOKENS
) -> Iterator[tuple[int, Tensor]]:
    """Reads tokens through a cache in pieces, which bounds the memory of a prefill.

    Args:
        decoder: the decoder.
        ids: ``(B, T)`` token ids.
        cache: cache of the decoder.
        lengths: ``(B,)`` true lengths of right-padded rows, None for all T.
        piece: tokens of each row in one forward pass.

    Yields:
        The first column of each piece, and its last hidden states ``(B, piece or less, C)``.
    """
    for begin in range(0, ids.shape[1], piece):
        part = ids[:, begin : begin + piece]
        counts = None if lengths is None else (lengths - begin).clamp(0, part.shape[1])
        yield begin, decoder.hidden(part, cache=cache, lengths=counts)
