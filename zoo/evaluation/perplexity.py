"""Perplexity per token, word and byte, and bits per byte, from one sum of nats.

With N nats over T scored tokens of a text of W words and B UTF-8 bytes: perplexity = exp(N / T), word_perplexity =
exp(N / W), byte_perplexity = exp(N / B), bits_per_byte = N / (B ln 2). Words and bytes are those of the original text,
so that all but the first can be compared between tokenizers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from zoo.evaluation.scoring import score_documents
from zoo.evaluation.statistics import bootstrap_sums, interval
from zoo.model.decoder import Decoder

NATS, TOKENS, BYTES, WORDS = range(4)
DENOMINATORS = {"perplexity": TOKENS, "word_perplexity": WORDS, "byte_perplexity": BYTES, "bits_per_byte": BYTES}


@dataclass(frozen=True)
class DocumentScores:
    """What perplexity is made of, by document.

    Attributes:
        nats: ``(documents,)`` float64, negative log-likelihood of the whole document.
        tokens, bytes, words: ``(documents,)`` int64; tokens scored, and size of the original text.
    """

    nats: np.ndarray
    tokens: np.ndarray
    bytes: np.ndarray
    words: np.ndarray

    def table(self) -> np.ndarray:
        """``(documents, 4)`` float64: nats, tokens, bytes, words."""
        return np.stack([self.nats, self.tokens, self.bytes, self.words], axis=1).astype(np.float64)


@dataclass(frozen=True)
class Estimate:
    """A value and its 95 % interval, None where it cannot be told."""

    value: float | None
    ci95: tuple[float, float] | None


def evaluate_perplexity(
    decoder: Decoder,
    documents: Iterable[np.ndarray],
    counts: np.ndarray,
    bos: int,
    length: int,
    stride: int | None = None,
    batch_tokens: int = 8_192,
    progress: Callable[[int], None] = lambda tokens: None,
) -> DocumentScores:
    """Nats of every document, each token scored once and documents kept apart, on the decoder's own device.

    Args:
        documents: token ids of each document, without the document token.
        counts: ``(documents, >= 2)``: UTF-8 bytes and words of each document's original text.
        bos: the document token, from which the first token of a document is predicted.
        length: inputs per window. stride: tokens scored per window, None for ``length``.
        batch_tokens: inputs per forward pass; changes nothing but speed and memory.
        progress: called with the number of tokens scored since its last call.

    Raises:
        ValueError: on a length, stride or batch_tokens out of range.
    """
    nats = np.zeros(len(counts), dtype=np.float64)
    tokens = np.zeros(len(counts), dtype=np.int64)
    for index, scored in score_documents(decoder, documents, bos, length, stride, batch_tokens, progress):
        nats[index] += scored.sum(dtype=np.float64)
        tokens[index] += len(scored)
    return DocumentScores(nats, tokens, counts[:, 0].astype(np.int64), counts[:, 1].astype(np.int64))


def estimate_metrics(scores: DocumentScores, seed: int = 0) -> dict[str, Estimate]:
    """Every metric by name, with a cluster bootstrap by document; no interval for a single document."""
    table = scores.table()
    total = table.sum(axis=0, keepdims=True)
    resampled = bootstrap_sums(table, seed) if len(table) > 1 else None
    estimates = {}
    for metric in DENOMINATORS:
        value = float(_metric(metric, total)[0])
        drawn = _metric(metric, resampled) if resampled is not None else np.array([np.nan])
        ci95 = interval(drawn) if np.isfinite(drawn).all() else None
        estimates[metric] = Estimate(value if math.isfinite(value) else None, ci95)
    return estimates


def _metric(metric: str, sums: np.ndarray) -> np.ndarray:
    """Values from ``(n, 4)`` sums; infinite or NaN where the text has no words, or the number is out of range."""
    with np.errstate(all="ignore"):
        rate = sums[:, NATS] / sums[:, DENOMINATORS[metric]]
        return rate / math.log(2) if metric == "bits_per_byte" else np.exp(rate)
