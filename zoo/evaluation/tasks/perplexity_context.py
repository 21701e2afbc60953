"""The task "perplexity_context": loss of the same tokens as more and more of the text before them is shown."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from zoo.evaluation.display.progress import progress_bar
from zoo.evaluation.results.models import Record
from zoo.evaluation.results.statistics import paired_bootstrap
from zoo.evaluation.scoring.documents import Piece, score_windows
from zoo.evaluation.scoring.perplexity_sums import part_records
from zoo.evaluation.tasks.base import MAX_DOCUMENTS, Keep, Lengths, Outcome, TextTask, make_anew
from zoo.evaluation.tasks.perplexity_position import choose_documents
from zoo.evaluation.tasks.text_results import ContextResults
from zoo.registry import TASKS
from zoo.runs.corpus import FEW, Corpus, corpus_warnings, describe_corpus, open_corpus, token_bytes
from zoo.runs.subject import Subject
from zoo.schema.base import Positive, option

TASK = "perplexity_context"
SHORTEST, LARGEST_TARGET = 64, 256


@dataclass(frozen=True)
class Span:
    """Span of targets: ``target`` tokens of a document from token ``start`` on."""

    document: int
    start: int


@TASKS.register("perplexity_context")
class PerplexityContextTask(TextTask):
    """Perplexity of fixed spans of text, each after its last L tokens, for every L of ``lengths``.

    All lengths score the very same tokens, all of which have the longest context, so that the curve shows what context
    is worth and nothing else. "gain" is how many bits per byte a length saves against the shortest one, with a paired
    bootstrap by document.
    """

    kind = ContextResults()

    max_documents: Positive | None = MAX_DOCUMENTS
    lengths: Lengths | None = option(
        "tokens before a span; null: powers of two from 64 to twice the length of training, as far as ten documents "
        "reach, or at least one",
        default=None,
    )
    target: Positive | None = option(
        "tokens of a span; null: a quarter of the length of training, at most 256", default=None
    )
    spans: Positive = option(
        "of a document, evenly spread as far as they fit without overlap; the last one ends the document", default=4
    )

    def check(self, subject: Subject, seed: int) -> None:
        self._choose(subject)

    def evaluate(self, subject: Subject, seed: int, keep: Keep = make_anew) -> Outcome:
        """Scores the spans after each length of context.

        Raises:
            DataError: if there is no such text, or no document is long enough.
        """
        corpus, target, lengths, chosen = self._choose(subject)
        spans = list(place_spans(corpus.sizes, chosen, target, lengths[-1], self.spans))
        sizes, notes = token_bytes(subject)
        tables, seconds = self._score(subject, keep, corpus, spans, lengths, target, sizes)
        return Outcome(
            name=(TASK, corpus.name, corpus.split),
            title=f"{corpus.name} ({corpus.split}) by context",
            protocol=self._describe(subject, corpus, lengths, target, spans, tables),
            records=list(_records(spans, tables, seed, seconds)),
            samples=_samples(corpus, spans, target, tables),
            warnings=_warnings(subject, corpus, lengths, target, len(chosen)) + notes,
            bytes_per_token=float(tables[lengths[0]][:, 2].sum() / (target * len(spans))) or None,
        )

    def _choose(self, subject: Subject) -> tuple[Corpus, int, list[int], np.ndarray]:
        """The text, tokens of a span, lengths before it, and which documents are long enough for both."""
        trained = subject.train_length
        target = self.target if self.target is not None else min(LARGEST_TARGET, max(1, trained // 4))
        corpus = open_corpus(subject, self.split, self.path, self.text_column)
        lengths = sorted(set(self.lengths)) if self.lengths else default_lengths(corpus.sizes, trained, target)
        chosen = choose_documents(corpus, lengths[-1] + target, self.max_documents, "task.lengths or task.target")
        return corpus, target, lengths, chosen

    def _score(
        self,
        subject: Subject,
        keep: Keep,
        corpus: Corpus,
        spans: list[Span],
        lengths: list[int],
        target: int,
        sizes: np.ndarray,
    ) -> tuple[dict[int, np.ndarray], float]:
        """``(spans, 3)`` nats, tokens and bytes for every length, and the seconds they took."""
        total = target * len(spans)
        places = [(span.document, span.start) for span in spans]
        kept = {}
        with progress_bar(f"scoring {corpus.name} ({corpus.split}) by context", total * len(lengths)) as advance:
            for length in lengths:
                score = partial(self._score_length, subject, corpus, spans, target, length, sizes, advance)
                key = [TASK, corpus.store.key, places, target, length]
                kept[length] = keep(key, score, partial(advance, total))
        tables = {length: np.array(cell["sums"]) for length, cell in kept.items()}
        return tables, sum(cell["seconds"] for cell in kept.values())

    def _score_length(
        self,
        subject: Subject,
        corpus: Corpus,
        spans: list[Span],
        target: int,
        length: int,
        sizes: np.ndarray,
        progress: Callable[[int], None],
    ) -> dict[str, Any]:
        sums = np.zeros((len(spans), 3))
        pieces = cut_spans(corpus, spans, target, length)
        for piece, nats in score_windows(subject.decoder, pieces, self.batch_tokens, progress):
            sums[piece.document] = nats.sum(dtype=np.float64), len(nats), sizes[piece.targets].sum()
        return {"sums": sums.tolist()}

    def _describe(
        self,
        subject: Subject,
        corpus: Corpus,
        lengths: list[int],
        target: int,
        spans: list[Span],
        tables: dict[int, np.ndarray],
    ) -> dict[str, Any]:
        return {
            **describe_corpus(subject, corpus, self.path),
            "bos": "where a window reaches the start of its document",
            "stateful": False,
            "context": "each target sees its L tokens or more: those before its span, and the span up to itself",
            "lengths": lengths,
            "target": target,
            "spans": self.spans,
            "gain_over": lengths[0],
            "documents": len({span.document for span in spans}),
            "tokens": target * len(spans),
            "bytes": int(tables[lengths[0]][:, 2].sum()),
            "max_documents": self.max_documents,
        }


def default_lengths(sizes: np.ndarray, trained: int, target: int) -> list[int]:
    """Returns powers of two from 64, then windows of the trained length and of twice it, as far as documents reach."""
    room = max(1, trained - target)
    length = SHORTEST
    while length > room:
        length //= 2
    lengths = [length]
    while 2 * lengths[-1] <= room:
        lengths.append(2 * lengths[-1])
    lengths = sorted({*lengths, room, max(1, 2 * trained - target)})
    reached = {length: int((sizes >= length + target).sum()) for length in lengths}
    enough = [length for length in lengths if reached[length] >= FEW]
    return enough or [length for length in lengths if reached[length]] or lengths[:1]


def place_spans(sizes: np.ndarray, documents: np.ndarray, target: int, context: int, most: int) -> Iterator[Span]:
    """Yields up to ``most`` spans of each document: the last one ends it, all have ``context`` tokens before them."""
    for document in documents.tolist():
        last = int(sizes[document]) - target
        count = min(most, (last - context) // target + 1)
        for index in range(count):
            yield Span(document, last - (last - context) * index // max(1, count - 1))


def cut_spans(corpus: Corpus, spans: list[Span], target: int, length: int) -> Iterator[Piece]:
    """Yields the window of every span: its last ``length`` tokens and itself.

    A window that begins a document has the document token, too. ``Piece.document`` is the number of the span.
    """
    for number, span in enumerate(spans):
        start = max(span.start - length, 0) or -1
        tokens = corpus.span(span.document, start, span.start + target)
        yield Piece(number, tokens, target, start + 1)


def _records(spans: list[Span], tables: dict[int, np.ndarray], seed: int, seconds: float) -> Iterator[Record]:
    clusters = np.array([span.document for span in spans])
    names, unit = np.unique(clusters, return_inverse=True)
    base = min(tables)
    rate = sum(float(table[:, 1].sum()) for table in tables.values()) / max(seconds, 1e-9)
    for length, table in tables.items():
        documents = np.stack([np.bincount(unit, column, len(names)) for column in table.T], axis=1)
        for record in part_records(TASK, "context", length, documents, seed):
            yield record.model_copy(update={"wall_s": round(seconds, 3), "tok_s": round(rate, 1)})
        if length == base or not table[:, 2].sum():
            continue
        bits = np.log(2)
        gain = paired_bootstrap(tables[base][:, 0] / bits, table[:, 0] / bits, seed, clusters, table[:, 2])
        value = gain.value if np.isfinite(gain.value) else None
        yield Record(
            task=TASK,
            variant="gain",
            length=length,
            depth=None,
            metric="bits_per_byte",
            value=value,
            ci95=gain.ci95,
            n=gain.n,
            unit="doc",
            chance=None,
            higher_is_better=True,
        )


def _samples(corpus: Corpus, spans: list[Span], target: int, tables: dict[int, np.ndarray]) -> list[dict[str, Any]]:
    names = corpus.names
    size = next(iter(tables.values()))[:, 2]
    return [
        {
            "id": f"{names[span.document]}:{span.start}-{span.start + target}",
            "tokens": target,
            "bytes": int(size[row]),
            "nats": {str(length): float(table[row, 0]) for length, table in tables.items()},
        }
        for row, span in enumerate(spans)
    ]


def _warnings(subject: Subject, corpus: Corpus, lengths: list[int], target: int, documents: int) -> list[str]:
    trained = subject.train_length
    warnings = corpus_warnings(subject, corpus, documents, 0)
    beyond = [str(length) for length in lengths if length + target - 1 > trained]
    if beyond:
        warnings.append(
            f"Context {', '.join(beyond)} with its {target} targets is longer than the windows of training ({trained})."
        )
    if len(lengths) == 1:
        warnings.append(
            f"There is one context length, {lengths[0]}, so there is no gain: no document reaches a longer one, or "
            "task.lengths names only this one."
        )
    return warnings
