"""Negative log-likelihood of documents read to their end with the decoder's caches, so that nothing is truncated."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache

import numpy as np
import torch

from zoo.evaluation.scoring.documents import Piece, batch_pieces, evaluating
from zoo.model.decoder import Decoder
from zoo.model.loss import next_token_loss

CACHE_BYTES = 2**30  # of all documents that are read side by side; one longer document is read alone


def score_stateful(
    decoder: Decoder,
    documents: Iterable[np.ndarray],
    bos: int,
    length: int,
    batch_tokens: int = 8_192,
    progress: Callable[[int], None] = lambda tokens: None,
) -> Iterator[tuple[Piece, np.ndarray]]:
    """Yields each document whole, with the nats of all its tokens, fp32; each token sees the whole document before it.

    Args:
        decoder: the decoder.
        documents: token ids of each, without the document token ``bos``; empty ones are left out.
        bos: the document token.
        length: tokens per forward pass of a document; changes nothing but speed and memory.
        batch_tokens: inputs per forward pass of all documents.
        progress: called with the number of tokens scored since its last call.

    Raises:
        ValueError: on a length or batch_tokens below 1.
    """
    if length < 1:
        raise ValueError(f"length={length}: expected a number >= 1.")
    pieces = (
        Piece(index, np.concatenate([[bos], document]).astype(np.int64), len(document))
        for index, document in enumerate(documents)
        if len(document)
    )
    dtype = decoder.head.weight.dtype
    cache_bytes = lru_cache(maxsize=1)(lambda tokens: decoder.cost(tokens, dtype).cache_bytes)

    def fits(batch: list[Piece], piece: Piece) -> bool:
        longest, rows = len(batch[0]), len(batch) + 1
        similar = len(piece) <= length or 2 * len(piece) >= longest  # a row that has ended still costs time
        return similar and rows * min(longest, length) <= batch_tokens and rows * cache_bytes(longest) <= CACHE_BYTES

    for batch in batch_pieces(pieces, batch_tokens, fits):
        with evaluating(decoder):  # and not while others hold what is yielded
            scores = _read(decoder, batch, length, progress)
        yield from zip(batch, scores)


def _read(decoder: Decoder, batch: list[Piece], length: int, progress: Callable[[int], None]) -> list[np.ndarray]:
    """Nats of all tokens of each document of a batch."""
    longest = len(batch[0])
    cache = decoder.new_cache(len(batch), longest)
    weight = decoder.head.weight.detach()
    found: list[list[np.ndarray]] = [[] for _ in batch]
    for begin in range(0, longest, length):
        width = min(length, longest - begin)
        counts = [min(max(len(piece) - begin, 0), width) for piece in batch]
        tokens = np.zeros((len(batch), width + 1), dtype=np.int64)
        for row, (piece, count) in enumerate(zip(batch, counts)):
            if count:
                tokens[row, : count + 1] = piece.tokens[begin : begin + count + 1]
        ids = torch.from_numpy(tokens).to(weight.device)
        lengths = torch.tensor(counts, device=weight.device)
        mask = torch.arange(width, device=weight.device)[None] < lengths[:, None]
        hidden = decoder.hidden(ids[:, :-1], cache=cache, lengths=None if min(counts) == width else lengths)[mask]
        _, losses = next_token_loss(hidden[None], weight, ids[:, 1:][mask][None])
        for parts, nats in zip(found, np.split(losses[0].cpu().numpy(), np.cumsum(counts)[:-1])):
            parts.append(nats)
        progress(sum(counts))
    return [np.concatenate(parts) for parts in found]
