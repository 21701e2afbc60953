"""Encoding of text piece by piece, so that the tokens of an answer never depend on the text before it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from zoo.data.token_bytes import vocabulary_size
from zoo.data.tokenizers import encode_batch, tokenizer_fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PIECES = 2**16  # remembered


class Encoder:
    """Encodes the pieces of a sample.

    Pieces end with a line and answers begin with a space, where the tokenizers of language models split anyway. A
    tokenizer that adds a prefix to every text (as Llama 2's does) encodes pieces as they are after a line.

    Attributes:
        tokenizer: any fast tokenizer with an end-of-text token.
        document_token: the id of that token.
        fingerprint: fingerprint of the tokenizer.
        ids: every id that is not special, in order.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        self.document_token: int = tokenizer.eos_token_id
        self.fingerprint = tokenizer_fingerprint(tokenizer)
        special = set(tokenizer.all_special_ids)
        used = sorted(set(tokenizer.get_vocab().values()) - special)
        self.ids = np.array(used, dtype=np.int64)
        self.vocab_size = vocabulary_size(tokenizer)
        self._seen: dict[str, tuple[int, ...]] = {}
        self._line = self._ids("\n")
        self._adds_prefix = self._ids("\na") != self._line + self._ids("a")

    def _ids(self, text: str) -> tuple[int, ...]:
        return tuple(encode_batch(self.tokenizer, [text])[0].tolist())

    def _encode(self, text: str) -> tuple[int, ...]:
        if self._adds_prefix and (ids := self._ids("\n" + text))[: len(self._line)] == self._line:
            return ids[len(self._line) :]
        return self._ids(text)

    def __call__(self, text: str) -> tuple[int, ...]:
        """Ids of a piece of text; nothing is added."""
        if text not in self._seen:
            if len(self._seen) >= PIECES:
                self._seen.clear()
            self._seen[text] = self._encode(text) if text else ()
        return self._seen[text]

    def decode(self, ids: tuple[int, ...] | np.ndarray | list[int]) -> str:
        """Decodes ids to text, without special tokens."""
        return str(self.tokenizer.decode(list(map(int, ids)), skip_special_tokens=True))
