"""Decoding of tokens to text one by one, never half a character."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

INCOMPLETE = "\ufffd"  # what the decoder puts in place of bytes that are no character, or not yet


class TextStream:
    """Text of a growing sequence of tokens; all pieces joined are the text of all tokens decoded at once.

    Args:
        tokenizer: the tokenizer.
        context: tokens before the first one, whose text is complete and not returned again.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, context: Sequence[int] = ()) -> None:
        self._decode = tokenizer.backend_tokenizer.decode
        self._context, self._pending = list(context), list[int]()
        self._given = len(self._text())

    def push(self, token: int) -> str:
        """Returns the text that is certain after ``token``.

        Bytes at the end that may become a character with the next token are held back.
        """
        self._pending.append(token)
        text = self._text()
        certain = text.rstrip(INCOMPLETE)
        piece = certain[self._given :]
        self._given = max(self._given, len(certain))
        if piece and certain == text:  # a clean border: what came before it is not decoded again
            self._context, self._pending = self._pending, []
            self._given = len(self._text())
        return piece

    def finish(self) -> str:
        """Returns the text that is still held back."""
        return self._text()[self._given :]

    def _text(self) -> str:
        return self._decode(self._context + self._pending, skip_special_tokens=True)
