"""Negative log-likelihood of documents under a decoder, window by window, in batches of windows of similar length."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from zoo.evaluation.scoring.windows import rolling_windows
from zoo.generation.generate import evaluation_mode
from zoo.model.decoder import Decoder
from zoo.model.loss import next_token_loss

P = TypeVar("P", bound=Sized)
BUFFER = 64  # batches' worth of windows among which those of similar length are put together


@dataclass(frozen=True)
class Piece:
    """A window with its tokens: ``tokens[:-1]`` are the inputs, the last ``scored`` of ``tokens[1:]`` count.

    Attributes:
        document: number of the document.
        tokens: token ids.
        scored: number of targets that count.
        start: position of ``tokens[0]`` in the document, whose document token has position 0.
    """

    document: int
    tokens: np.ndarray
    scored: int
    start: int = 0

    def __len__(self) -> int:
        return len(self.tokens) - 1

    @property
    def first(self) -> int:
        """Index in the document, without its document token, of the first token that counts."""
        return self.start + len(self) - self.scored

    @property
    def targets(self) -> np.ndarray:
        """``(scored,)`` ids of the tokens that count."""
        return self.tokens[len(self.tokens) - self.scored :]


def cut_documents(documents: Iterable[np.ndarray], bos: int, length: int, stride: int | None) -> Iterator[Piece]:
    """Yields the windows of every document in order.

    ``bos`` is the document token, from which the first token is predicted.
    """
    for index, document in enumerate(documents):
        extended = np.concatenate([[bos], document]).astype(np.int64)
        for window in rolling_windows(len(document), length, stride):
            yield Piece(index, extended[window.start : window.stop + 1], window.scored, window.start)


def batch_pieces(
    pieces: Iterable[P], batch_tokens: int, fits: Callable[[list[P], P], bool] | None = None
) -> Iterator[list[P]]:
    """Batches windows, or anything else with a length, of similar lengths.

    A batch has at most ``batch_tokens`` inputs with padding, or one longer window.

    Args:
        pieces: the windows.
        batch_tokens: inputs per batch.
        fits: whether a batch, longest window first, can take one more; None for the rule above.

    Raises:
        ValueError: if ``batch_tokens`` is below 1.
    """
    if batch_tokens < 1:
        raise ValueError(f"batch_tokens={batch_tokens}: expected a number >= 1.")
    fits = fits or (lambda batch, piece: len(batch[0]) * (len(batch) + 1) <= batch_tokens)
    buffer: list[P] = []
    held = 0
    for piece in pieces:
        buffer.append(piece)
        held += len(piece)
        if held >= BUFFER * batch_tokens:
            yield from _by_length(buffer, fits)
            buffer, held = [], 0
    yield from _by_length(buffer, fits)


def _by_length(pieces: list[P], fits: Callable[[list[P], P], bool]) -> Iterator[list[P]]:
    batch: list[P] = []
    for piece in sorted(pieces, key=len, reverse=True):
        if batch and not fits(batch, piece):
            yield batch
            batch = []
        batch.append(piece)
    if batch:
        yield batch


def score_pieces(decoder: Decoder, batch: list[Piece]) -> list[np.ndarray]:
    """Computes the nats of the scored tokens of every window, fp32.

    Windows are padded on the right, where a causal model's earlier outputs cannot see, and padding is never scored.
    """
    longest = len(batch[0].tokens)
    tokens = np.zeros((len(batch), longest), dtype=np.int64)
    counts = np.zeros((len(batch), longest - 1), dtype=bool)
    for row, piece in enumerate(batch):
        tokens[row, : len(piece.tokens)] = piece.tokens
        counts[row, len(piece) - piece.scored : len(piece)] = True
    weight = decoder.head.weight.detach()
    ids, mask = torch.from_numpy(tokens).to(weight.device), torch.from_numpy(counts).to(weight.device)
    hidden = decoder.hidden(ids[:, :-1])[mask]
    _, losses = next_token_loss(hidden[None], weight, ids[:, 1:][mask][None])
    return np.split(losses[0].cpu().numpy(), np.cumsum([piece.scored for piece in batch])[:-1])


def score_windows(
    decoder: Decoder,
    pieces: Iterable[Piece],
    batch_tokens: int = 8_192,
    progress: Callable[[int], None] = lambda tokens: None,
) -> Iterator[tuple[Piece, np.ndarray]]:
    """Yields each window with the nats of its scored tokens, fp32; the order of windows changes.

    Args:
        decoder: the decoder.
        pieces: the windows.
        batch_tokens: inputs per forward pass.
        progress: called with the number of tokens scored since its last call.
    """
    for batch in batch_pieces(pieces, batch_tokens):
        with evaluating(decoder):  # and not while others hold what is yielded
            scores = score_pieces(decoder, batch)
        yield from zip(batch, scores)
        progress(sum(piece.scored for piece in batch))


def score_documents(
    decoder: Decoder,
    documents: Iterable[np.ndarray],
    bos: int,
    length: int,
    stride: int | None = None,
    batch_tokens: int = 8_192,
    progress: Callable[[int], None] = lambda tokens: None,
) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (document, nats of some of its tokens) until each token of each document has been scored once.

    Args:
        decoder: the decoder.
        documents: token ids of each, without the document token ``bos``.
        bos: the document token.
        length: as in :func:`zoo.evaluation.scoring.windows.rolling_windows`.
        stride: as in :func:`zoo.evaluation.scoring.windows.rolling_windows`.
        batch_tokens: as in :func:`score_windows`.
        progress: as in :func:`score_windows`.
    """
    pieces = cut_documents(documents, bos, length, stride)
    for piece, nats in score_windows(decoder, pieces, batch_tokens, progress):
        yield piece.document, nats


@contextmanager
def evaluating(decoder: Decoder) -> Iterator[None]:
    """Context manager for evaluation mode without gradients, after which the decoder has its former mode."""
    with evaluation_mode(decoder), torch.no_grad():
        yield
