"""How many bytes of text each token stands for."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.data.documents import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def vocabulary_size(tokenizer: PreTrainedTokenizerFast) -> int:
    """Returns one more than the largest id, added tokens included."""
    return max(tokenizer.get_vocab().values()) + 1


def token_byte_lengths(tokenizer: PreTrainedTokenizerFast) -> np.ndarray:
    """Returns the number of UTF-8 bytes of each id, (vocabulary_size,) int64; 0 for special tokens and unused ids.

    It is exact for byte-level tokenizers and for SentencePiece-style ones with byte fallback (where a space that the
    tokenizer puts before a text counts as one byte).

    Raises:
        DataError: for any other kind, whose tokens do not stand for fixed bytes.
    """
    backend = tokenizer.backend_tokenizer
    measure: Callable[[str], int]
    if _is_byte_level(backend.decoder):
        measure = len  # every byte is written as one character of the byte-level alphabet
    elif getattr(backend.model, "byte_fallback", False) and "▁" in repr(backend.decoder):
        measure = _fallback_length
    else:
        raise DataError(
            f"the tokens of this {type(backend.model).__name__} tokenizer do not stand for fixed bytes, so losses per "
            "byte would be wrong: use a byte-level tokenizer, or one with byte fallback"
        )
    lengths = np.zeros(vocabulary_size(tokenizer), dtype=np.int64)
    for token, index in tokenizer.get_vocab().items():
        lengths[index] = measure(token)
    for index, added in tokenizer.added_tokens_decoder.items():
        lengths[index] = 0 if added.special else len(added.content.encode())
    return lengths


def _is_byte_level(part: Any) -> bool:
    return "ByteLevel(" in repr(part)


def _fallback_length(token: str) -> int:
    if re.fullmatch(r"<0x[0-9A-Fa-f]{2}>", token):
        return 1
    return len(token.replace("▁", " ").encode())
