"""The task "perplexity_position": loss by position in the document, on documents that reach the last position."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from zoo.config import ConfigError
from zoo.data import DataError
from zoo.evaluation.display.progress import progress_bar
from zoo.evaluation.results.models import Record
from zoo.evaluation.scoring.documents import Piece, score_windows
from zoo.evaluation.scoring.perplexity_sums import part_records, sum_groups
from zoo.evaluation.scoring.repeated_bigrams import bigram_gaps
from zoo.evaluation.tasks.base import MAX_DOCUMENTS, Keep, Outcome, TextTask, make_anew
from zoo.evaluation.tasks.text_results import PositionResults
from zoo.registry import TASKS
from zoo.runs.corpus import (
    Corpus,
    corpus_warnings,
    cut_parts,
    describe_corpus,
    open_corpus,
    token_bytes,
)
from zoo.runs.subject import Subject
from zoo.schema.base import Positive, option

TASK = "perplexity_position"


@TASKS.register("perplexity_position")
class PerplexityPositionTask(TextTask):
    """Perplexity of the tokens 0..63, 64..127, 128..255, ... of documents, each read in one window from its start.

    Every bucket has tokens of the same documents, those of at least ``length`` tokens, so that its value depends on the
    position and not on which documents are long. Each bucket is also split into tokens that repeat an earlier bigram of
    their document (recall) and all others.
    """

    kind = PositionResults()

    length: Positive | None = option(
        "tokens read from the start of each document; null: the length of training", default=None
    )
    max_documents: Positive | None = MAX_DOCUMENTS
    bucket: Positive = option(
        "tokens of the first bucket of positions; each further one ends at twice the end of the one before", default=64
    )

    def check(self, subject: Subject, seed: int) -> None:
        self._choose(subject)

    def evaluate(self, subject: Subject, seed: int, keep: Keep = make_anew) -> Outcome:
        """Scores the documents and computes perplexity by position.

        Raises:
            DataError: if there is no such text, or no document is long enough.
        """
        length, corpus, chosen = self._choose(subject)
        edges = position_edges(length, self.bucket)
        sizes, notes = token_bytes(subject)
        sums, seconds = self._score(subject, keep, corpus, chosen, edges, sizes)
        tokens = length * len(chosen)
        records = [
            record.model_copy(update={"wall_s": round(seconds, 3), "tok_s": round(tokens / max(seconds, 1e-9), 1)})
            for record in _records(sums, edges, seed)
        ]
        return Outcome(
            name=(TASK, corpus.name, corpus.split),
            title=f"{corpus.name} ({corpus.split}) by position",
            protocol=self._describe(subject, corpus, length, edges, len(chosen), sums),
            records=records,
            samples=_samples(corpus, chosen, sums),
            warnings=corpus_warnings(subject, corpus, len(chosen), length) + notes,
            bytes_per_token=float(sums[..., 2].sum() / tokens) or None,
        )

    def _choose(self, subject: Subject) -> tuple[int, Corpus, np.ndarray]:
        """Tokens read of each document, the text, and which of its documents are that long."""
        length = self.length if self.length is not None else subject.train_length
        corpus = open_corpus(subject, self.split, self.path, self.text_column)
        return length, corpus, choose_documents(corpus, length, self.max_documents, "task.length")

    def _score(
        self, subject: Subject, keep: Keep, corpus: Corpus, chosen: np.ndarray, edges: list[int], sizes: np.ndarray
    ) -> tuple[np.ndarray, float]:
        """``(documents, buckets, 2, 3)`` nats, tokens and bytes of each bucket's other and recalled tokens; seconds."""
        total = edges[-1] * len(chosen)
        kept = []
        with progress_bar(f"scoring {corpus.name} ({corpus.split}) by position", total) as advance:
            for part in cut_parts(np.full(len(chosen), edges[-1])):
                documents = chosen[part]
                score = partial(self._score_part, subject, corpus, documents, edges, sizes, advance)
                key = [TASK, corpus.store.key, edges, documents.tolist()]
                kept.append(keep(key, score, partial(advance, edges[-1] * len(documents))))
        return np.concatenate([np.array(cell["sums"]) for cell in kept]), sum(cell["seconds"] for cell in kept)

    def _score_part(
        self,
        subject: Subject,
        corpus: Corpus,
        documents: np.ndarray,
        edges: list[int],
        sizes: np.ndarray,
        progress: Callable[[int], None],
    ) -> dict[str, Any]:
        length, buckets = edges[-1], len(edges) - 1
        kind = np.searchsorted(edges, np.arange(length), side="right") - 1
        sums = np.zeros((len(documents), buckets, 2, 3))
        pieces = (Piece(row, corpus.span(index, -1, length), length) for row, index in enumerate(documents))
        for piece, nats in score_windows(subject.decoder, pieces, self.batch_tokens, progress):
            groups = 2 * kind + (bigram_gaps(piece.tokens) > 0)
            table = sum_groups(groups, 2 * buckets, nats, sizes[piece.targets])
            sums[piece.document] = table.reshape(buckets, 2, 3)
        return {"sums": sums.tolist()}

    def _describe(
        self, subject: Subject, corpus: Corpus, length: int, edges: list[int], documents: int, sums: np.ndarray
    ) -> dict[str, Any]:
        return {
            "window": length,
            "stride": length,
            **describe_corpus(subject, corpus, self.path),
            "stateful": False,
            "recall": "bigram",
            "positions": edges,
            "documents": documents,
            "tokens": int(sums[..., 1].sum()),
            "bytes": int(sums[..., 2].sum()),
            "max_documents": self.max_documents,
        }


def position_edges(length: int, bucket: int = 64) -> list[int]:
    """Returns 0, bucket, twice, four times ... and ``length``: bucket i holds edges[i] .. edges[i + 1] - 1."""
    edges = [0]
    while bucket < length:
        edges.append(bucket)
        bucket *= 2
    return [*edges, length]


def choose_documents(corpus: Corpus, tokens: int, most: int | None, option: str) -> np.ndarray:
    """Returns the indices of the first documents of at least ``tokens`` tokens, at most ``most``.

    Raises:
        ConfigError: if ``most`` is below 1.
        DataError: if there is none; the message says how long they are.
    """
    if most is not None and most < 1:
        raise ConfigError(f"task.max_documents={most}: expected a number >= 1, or null for all documents.")
    chosen = np.flatnonzero(corpus.sizes >= tokens)[:most]
    if not len(chosen):
        raise DataError(
            f"no document of {corpus.name} ({corpus.split}) has {tokens} tokens, the longest has "
            f"{int(corpus.sizes.max())}: choose a smaller {option}, or give longer text with task.path=..."
        )
    return chosen


def _records(sums: np.ndarray, edges: list[int], seed: int) -> list[Record]:
    """Of every bucket: all its tokens, the recalled ones and the others."""
    records = []
    for bucket, (start, stop) in enumerate(pairwise(edges)):
        parts = {"": sums[:, bucket].sum(axis=1), "-recall": sums[:, bucket, 1], "-other": sums[:, bucket, 0]}
        for suffix, table in parts.items():
            records += part_records(TASK, f"{start}-{stop}{suffix}", edges[-1], table, seed)
    return records


def _samples(corpus: Corpus, chosen: np.ndarray, sums: np.ndarray) -> list[dict[str, Any]]:
    names, whole = corpus.names, sums.sum(axis=2)
    return [
        {
            "id": names[index],
            "nats": table[:, 0].tolist(),
            "tokens": table[:, 1].tolist(),
            "bytes": table[:, 2].tolist(),
        }
        for index, table in zip(chosen, whole)
    ]
