"""The task "perplexity": perplexity and bits per byte of held-out documents."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple, dataclass
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
import torch

from zoo.config import ConfigError
from zoo.evaluation.display.progress import progress_bar
from zoo.evaluation.results.models import Record
from zoo.evaluation.scoring.perplexity_sums import DocumentScores, estimate_metrics, evaluate_perplexity, part_records
from zoo.evaluation.scoring.repeated_bigrams import split_sums
from zoo.evaluation.tasks.base import MAX_DOCUMENTS, Keep, Outcome, Role, TextTask, make_anew
from zoo.evaluation.tasks.text_results import PerplexityResults
from zoo.registry import TASKS
from zoo.runs.corpus import (
    Corpus,
    corpus_warnings,
    cut_parts,
    describe_corpus,
    open_corpus,
    token_bytes,
)
from zoo.runs.provenance import split_cache_bytes
from zoo.runs.subject import Subject
from zoo.schema.base import Positive, option


@dataclass(frozen=True)
class Protocol:
    """How documents are read: in windows of ``length`` inputs that score ``stride`` tokens, or ``stateful``."""

    mode: str
    length: int
    stride: int


@TASKS.register("perplexity")
class PerplexityTask(TextTask):
    """Perplexity of a split of the run's data, or of other local text."""

    kind = PerplexityResults()

    mode: Annotated[Literal["window", "sliding", "stateful"] | None, Role.NAMED] = option(
        "window: disjoint windows; sliding: overlapping ones; stateful: every token sees its whole document, by the "
        "caches of the decoder; null: what stride says",
        default=None,
    )
    length: Positive | None = option(
        "tokens of context of a window; null: the length of training; if stateful, tokens of a forward pass, without "
        "influence on the result",
        default=None,
    )
    stride: Positive | None = option(
        "tokens scored per window; null: length, or half of it for mode=sliding; smaller gives more context and takes "
        "longer",
        default=None,
    )
    max_bytes: Positive | None = option("only the first whole documents within so many bytes", default=None)
    max_documents: Positive | None = MAX_DOCUMENTS

    def check(self, subject: Subject, seed: int) -> None:
        self._protocol(subject)
        self._open(subject)

    def evaluate(self, subject: Subject, seed: int, keep: Keep = make_anew) -> Outcome:
        """Scores the documents and computes perplexities and bits per byte.

        Raises:
            ConfigError: on a stride that does not fit the length or the mode.
            DataError: if there is no such text.
        """
        protocol = self._protocol(subject)
        corpus = self._open(subject)
        sizes, notes = token_bytes(subject)
        parts = self._score(subject, keep, corpus, protocol, sizes)
        scores = _join(corpus, parts)
        records = _records(scores, protocol, seed, parts)
        return Outcome(
            name=("perplexity", corpus.name, corpus.split),
            title=f"{corpus.name} ({corpus.split})",
            protocol=self._describe(subject, corpus, scores, protocol),
            records=records,
            samples=_samples(corpus, scores),
            warnings=_warnings(subject, corpus, records[0].length, protocol) + notes,
            bytes_per_token=float(scores.bytes.sum() / scores.tokens.sum()),
        )

    def _open(self, subject: Subject) -> Corpus:
        return open_corpus(subject, self.split, self.path, self.text_column, self.max_bytes, self.max_documents)

    def _score(
        self, subject: Subject, keep: Keep, corpus: Corpus, protocol: Protocol, sizes: np.ndarray
    ) -> list[dict[str, Any]]:
        """What every part of the corpus has come to, those that an earlier evaluation has finished included."""
        parts = []
        with progress_bar(f"scoring {corpus.name} ({corpus.split})", corpus.num_tokens) as advance:
            for part in cut_parts(corpus.sizes):
                key = ["perplexity", corpus.store.key, astuple(protocol), part.start, part.stop]
                score = partial(self._score_part, subject, corpus, protocol, sizes, part, advance)
                parts.append(keep(key, score, partial(advance, int(corpus.sizes[part].sum()))))
        return parts

    def _score_part(
        self,
        subject: Subject,
        corpus: Corpus,
        protocol: Protocol,
        sizes: np.ndarray,
        part: slice,
        progress: Callable[[int], None],
    ) -> dict[str, Any]:
        if subject.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(subject.device)
        scores = evaluate_perplexity(
            subject.decoder,
            corpus.documents(part),
            corpus.counts[part],
            subject.document_token,
            protocol.length,
            protocol.stride,
            self.batch_tokens,
            progress,
            stateful=protocol.mode == "stateful",
            token_bytes=sizes,
        )
        assert scores.groups is not None
        memory = torch.cuda.max_memory_allocated(subject.device) if subject.device.type == "cuda" else None
        sums = {"nats": scores.nats.tolist(), "tokens": scores.tokens.tolist(), "groups": scores.groups.tolist()}
        return {**sums, "peak_mem": memory}

    def _protocol(self, subject: Subject) -> Protocol:
        length = self.length if self.length is not None else subject.train_length
        stride = self.stride
        if stride is None:
            stride = max(1, length // 2) if self.mode == "sliding" else length
        if stride > length:
            raise ConfigError(f"task.stride={stride}: expected a number in 1..{length} (task.length), or null for it.")
        if stride != length and self.mode in ("window", "stateful"):
            raise ConfigError(f"task.stride={stride} belongs to task.mode=sliding: leave it out for {self.mode}.")
        stateless = "window" if stride == length else "sliding"  # sliding by whole windows is the same
        return Protocol("stateful" if self.mode == "stateful" else stateless, length, stride)

    def _describe(self, subject: Subject, corpus: Corpus, scores: DocumentScores, protocol: Protocol) -> dict[str, Any]:
        stateful = protocol.mode == "stateful"
        windows = {"window": protocol.length, "stride": protocol.stride}
        return {
            **({"piece": protocol.length} if stateful else windows),
            **describe_corpus(subject, corpus, self.path),
            "stateful": stateful,
            "recall": "bigram",
            "documents": corpus.count,
            "tokens": int(scores.tokens.sum()),
            "bytes": int(scores.bytes.sum()),
            "words": int(scores.words.sum()),
            "max_bytes": self.max_bytes,
            "max_documents": self.max_documents,
            "complete": corpus.complete,
        }

    def name_parts(self, subject: Subject) -> list[str]:
        """Returns the parts of the file name for the effective options; a stride equal to the window is not named."""
        protocol = self._protocol(subject)
        stateful, sliding = protocol.mode == "stateful", protocol.stride != protocol.length
        settled = {
            "mode": "stateful" if stateful else None,
            "length": None if stateful else self.length,
            "stride": protocol.stride if sliding else None,
        }
        return super(PerplexityTask, self.model_copy(update=settled)).name_parts(subject)


def _join(corpus: Corpus, parts: list[dict[str, Any]]) -> DocumentScores:
    nats, tokens, groups = ([row for part in parts for row in part[name]] for name in ("nats", "tokens", "groups"))
    sizes, words = corpus.counts[:, :2].astype(np.int64).T
    return DocumentScores(np.array(nats), np.array(tokens), sizes, words, np.array(groups))


def _records(scores: DocumentScores, protocol: Protocol, seed: int, parts: list[dict[str, Any]]) -> list[Record]:
    seconds = sum(part["seconds"] for part in parts)
    memory = max((part["peak_mem"] for part in parts if part["peak_mem"] is not None), default=None)
    length = int(scores.tokens.max()) if protocol.mode == "stateful" else protocol.length
    records = [
        Record(
            task="perplexity",
            variant=protocol.mode,
            length=length,
            depth=None,
            metric=metric,
            value=estimate.value,
            ci95=estimate.ci95,
            n=len(scores.nats),
            unit="doc",
            chance=None,
            higher_is_better=False,
            wall_s=round(seconds, 3),
            tok_s=round(float(scores.tokens.sum()) / max(seconds, 1e-9), 1),
            peak_mem=memory,
        )
        for metric, estimate in estimate_metrics(scores, seed).items()
    ]
    assert scores.groups is not None
    for variant, table in split_sums(scores.groups):
        records += part_records("perplexity", variant, length, table, seed)
    return records


def _samples(corpus: Corpus, scores: DocumentScores) -> list[dict[str, Any]]:
    """One line per document; the recalled tokens among its own are counted apart, so that runs can be compared."""
    assert scores.groups is not None
    recalled = scores.groups[:, 1:].sum(axis=1)
    columns = {
        "id": corpus.names,
        "nats": scores.nats.tolist(),
        "tokens": scores.tokens.tolist(),
        "bytes": scores.bytes.tolist(),
        "words": scores.words.tolist(),
        "recall_nats": recalled[:, 0].tolist(),
        "recall_tokens": recalled[:, 1].astype(int).tolist(),
        "recall_bytes": recalled[:, 2].astype(int).tolist(),
    }
    return [dict(zip(columns, line)) for line in zip(*columns.values())]


def _warnings(subject: Subject, corpus: Corpus, longest: int, protocol: Protocol) -> list[str]:
    warnings = []
    stateful = protocol.mode == "stateful"
    if not corpus.complete:
        warnings.append(f"Only the first {corpus.count} of {len(corpus.store)} documents were evaluated.")
    if stateful:
        warnings.append(_stateful_warning(subject, longest))
    warnings += corpus_warnings(subject, corpus, corpus.count, 0 if stateful else protocol.length)
    return warnings


def _stateful_warning(subject: Subject, longest: int) -> str:
    growing = split_cache_bytes(subject.decoder, longest)[1]
    text = "Stateful: every token sees its whole document, so these numbers are not those of windows; "
    if growing:
        cost = f"{growing / 2**20:.1f} MiB at the longest document, {longest} tokens"
        text += f"softmax layers can do this only with a cache that grows with the document ({cost})"
    else:
        text += f"no layer keeps more for a longer document (the longest has {longest} tokens)"
    if longest > subject.train_length:
        text += f", and documents are longer than the windows of training ({subject.train_length})"
    return text + "."
