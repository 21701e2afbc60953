"""Perplexity per token, word and byte, and bits per byte, from one sum of nats.

With N nats over T scored tokens of a text of W words and B UTF-8 bytes: perplexity = exp(N / T), word_perplexity =
exp(N / W), byte_perplexity = exp(N / B), bits_per_byte = N / (B ln 2). Words and bytes are those of the original text,
so that all but the first can be compared between tokenizers. Of a part of the tokens, B are the bytes of these tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from zoo.evaluation.results.models import Record
from zoo.evaluation.results.statistics import Estimate, bootstrap_sums, interval
from zoo.evaluation.scoring.documents import cut_documents, score_windows
from zoo.evaluation.scoring.repeated_bigrams import GROUPS, bigram_gaps, gap_groups
from zoo.evaluation.scoring.stateful import score_stateful
from zoo.model.decoder import Decoder

NATS, TOKENS, BYTES, WORDS = range(4)
DENOMINATORS = {"perplexity": TOKENS, "word_perplexity": WORDS, "byte_perplexity": BYTES, "bits_per_byte": BYTES}
PART_METRICS = ("perplexity", "bits_per_byte")


@dataclass(frozen=True)
class DocumentScores:
    """Sums that perplexity is computed from, by document.

    Attributes:
        nats: ``(documents,)`` float64, negative log-likelihood of the whole document.
        tokens: ``(documents,)`` int64, number of tokens scored.
        bytes: ``(documents,)`` int64, UTF-8 bytes of the original text.
        words: ``(documents,)`` int64, words of the original text.
        groups: ``(documents, GROUPS, 3)`` float64, nats, tokens and bytes of the tokens of each group of
            :mod:`zoo.evaluation.scoring.repeated_bigrams`; None if they were not asked for.
    """

    nats: np.ndarray
    tokens: np.ndarray
    bytes: np.ndarray
    words: np.ndarray
    groups: np.ndarray | None = None

    def table(self) -> np.ndarray:
        """Returns nats, tokens, bytes and words as ``(documents, 4)`` float64."""
        return np.stack([self.nats, self.tokens, self.bytes, self.words], axis=1).astype(np.float64)


def evaluate_perplexity(
    decoder: Decoder,
    documents: Iterable[np.ndarray],
    counts: np.ndarray,
    bos: int,
    length: int,
    stride: int | None = None,
    batch_tokens: int = 8_192,
    progress: Callable[[int], None] = lambda tokens: None,
    *,
    stateful: bool = False,
    token_bytes: np.ndarray | None = None,
) -> DocumentScores:
    """Computes the nats of every document, each token scored once and documents separate, on the decoder's device.

    Args:
        decoder: the decoder.
        documents: token ids of each document, without the document token.
        counts: ``(documents, >= 2)``: UTF-8 bytes and words of each document's original text.
        bos: the document token, from which the first token of a document is predicted.
        length: inputs per window.
        stride: tokens scored per window, None for ``length``.
        batch_tokens: inputs per forward pass; changes nothing but speed and memory.
        progress: called with the number of tokens scored since its last call.
        stateful: read each document to its end with caches instead, in pieces of ``length`` tokens.
        token_bytes: ``(vocabulary,)`` bytes of each id, to split the tokens into those that repeat an earlier bigram of
            what the model sees and all others; None for no split.

    Raises:
        ValueError: on a length, stride or batch_tokens out of range.
    """
    nats = np.zeros(len(counts), dtype=np.float64)
    tokens = np.zeros(len(counts), dtype=np.int64)
    groups = None if token_bytes is None else np.zeros((len(counts), GROUPS, 3))
    if stateful:
        found = score_stateful(decoder, documents, bos, length, batch_tokens, progress)
    else:
        found = score_windows(decoder, cut_documents(documents, bos, length, stride), batch_tokens, progress)
    for piece, scored in found:
        nats[piece.document] += scored.sum(dtype=np.float64)
        tokens[piece.document] += len(scored)
        if groups is not None and token_bytes is not None:
            kinds = gap_groups(bigram_gaps(piece.tokens)[len(piece) - piece.scored :])
            groups[piece.document] += sum_groups(kinds, GROUPS, scored, token_bytes[piece.targets])
    return DocumentScores(nats, tokens, counts[:, 0].astype(np.int64), counts[:, 1].astype(np.int64), groups)


def sum_groups(kinds: np.ndarray, groups: int, nats: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Sums nats, tokens and bytes of the tokens of each kind 0..groups-1: ``(groups, 3)`` float64."""
    columns = (nats, np.ones(len(nats)), sizes)
    return np.stack([np.bincount(kinds, column.astype(np.float64), groups) for column in columns], axis=1)


def estimate_metrics(scores: DocumentScores, seed: int = 0) -> dict[str, Estimate]:
    """Estimates every metric, with a cluster bootstrap by document; no interval for a single document."""
    return estimate_sums(scores.table(), seed, tuple(DENOMINATORS))


def estimate_sums(table: np.ndarray, seed: int, metrics: tuple[str, ...] = PART_METRICS) -> dict[str, Estimate]:
    """Estimates metrics from ``(documents, 3 or 4)`` nats, tokens, bytes and, for word_perplexity, words."""
    total = table.sum(axis=0, keepdims=True)
    resampled = bootstrap_sums(table, seed) if len(table) > 1 else None
    estimates = {}
    for metric in metrics:
        value = float(_metric(metric, total)[0])
        drawn = _metric(metric, resampled) if resampled is not None else np.array([np.nan])
        ci95 = interval(drawn, units=len(table)) if np.isfinite(drawn).all() else None
        estimates[metric] = Estimate(value if math.isfinite(value) else None, ci95)
    return estimates


def _metric(metric: str, sums: np.ndarray) -> np.ndarray:
    """Values from ``(n, 3 or 4)`` sums; infinite or NaN without words or bytes, or where a number is out of range."""
    with np.errstate(all="ignore"):
        rate = sums[:, NATS] / sums[:, DENOMINATORS[metric]]
        return rate / math.log(2) if metric == "bits_per_byte" else np.exp(rate)


def part_records(task: str, variant: str, length: int, table: np.ndarray, seed: int) -> list[Record]:
    """Returns perplexity and bits per byte of a part of the tokens, from ``(documents, 3)`` nats, tokens and bytes.

    Documents without such a token are left out, and so is bits per byte if no byte is known to belong to them.
    """
    table = table[table[:, TOKENS] > 0]
    if not len(table):
        return []
    metrics = PART_METRICS if table[:, BYTES].sum() else PART_METRICS[:1]
    return [
        Record(
            task=task,
            variant=variant,
            length=length,
            depth=None,
            metric=metric,
            value=found.value,
            ci95=found.ci95,
            n=len(table),
            unit="doc",
            chance=None,
            higher_is_better=False,
        )
        for metric, found in estimate_sums(table, seed, metrics).items()
    ]
