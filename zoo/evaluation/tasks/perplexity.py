"""The task "perplexity": perplexity and bits per byte of held-out documents."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple, dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch

from zoo.config import ConfigError
from zoo.evaluation.display.progress import progress_bar
from zoo.evaluation.results.cell_store import open_cells
from zoo.evaluation.results.records import Record
from zoo.evaluation.scoring.perplexity_sums import DocumentScores, estimate_metrics, evaluate_perplexity, part_records
from zoo.evaluation.scoring.repeated_bigrams import split_sums
from zoo.evaluation.tasks.base import Outcome, TextTask
from zoo.registry import TASKS
from zoo.runs.corpus import (
    Corpus,
    corpus_warnings,
    cut_parts,
    describe_corpus,
    open_corpus,
    result_stem,
    token_bytes,
)
from zoo.runs.loaded_run import OpenedRun
from zoo.runs.provenance import split_cache_bytes
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

    mode: Literal["window", "sliding", "stateful"] | None = option(
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

    def check(self, run: OpenedRun, seed: int) -> None:
        """See :class:`zoo.evaluation.tasks.base.Task`."""
        self._protocol(run)
        self._open(run)

    def evaluate(self, run: OpenedRun, seed: int) -> Outcome:
        """See :class:`zoo.evaluation.tasks.base.Task`.

        Raises:
            ConfigError: on a stride that does not fit the length or the mode. DataError: if there is no such text.
        """
        protocol = self._protocol(run)
        corpus = self._open(run)
        sizes, notes = token_bytes(run)
        parts = self._score(run, corpus, protocol, sizes)
        scores = _join(corpus, parts)
        records = _records(scores, protocol, seed, parts)
        return Outcome(
            stem=self._stem(run, corpus, protocol, seed),
            title=f"{corpus.name} ({corpus.split})",
            protocol=self._describe(run, corpus, scores, protocol),
            records=records,
            samples=_samples(corpus, scores),
            warnings=_warnings(run, corpus, records[0].length, protocol) + notes,
            bytes_per_token=float(scores.bytes.sum() / scores.tokens.sum()),
        )

    def _open(self, run: OpenedRun) -> Corpus:
        return open_corpus(run, self.split, self.path, self.text_column, self.max_bytes, self.max_documents)

    def _score(self, run: OpenedRun, corpus: Corpus, protocol: Protocol, sizes: np.ndarray) -> list[dict[str, Any]]:
        """What every part of the corpus has come to, those that an earlier evaluation has finished included."""
        cells = open_cells(run, self.fresh)
        parts = []
        with progress_bar(f"scoring {corpus.name} ({corpus.split})", corpus.num_tokens) as advance:
            for part in cut_parts(corpus.sizes):
                key = ["perplexity", corpus.store.key, astuple(protocol), part.start, part.stop]
                score = partial(self._score_part, run, corpus, protocol, sizes, part, advance)
                parts.append(cells.keep(key, score, partial(advance, int(corpus.sizes[part].sum()))))
        return parts

    def _score_part(
        self,
        run: OpenedRun,
        corpus: Corpus,
        protocol: Protocol,
        sizes: np.ndarray,
        part: slice,
        progress: Callable[[int], None],
    ) -> dict[str, Any]:
        if run.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(run.device)
        scores = evaluate_perplexity(
            run.decoder,
            corpus.documents(part),
            corpus.counts[part],
            run.document_token,
            protocol.length,
            protocol.stride,
            self.batch_tokens,
            progress,
            stateful=protocol.mode == "stateful",
            token_bytes=sizes,
        )
        assert scores.groups is not None
        memory = torch.cuda.max_memory_allocated(run.device) if run.device.type == "cuda" else None
        sums = {"nats": scores.nats.tolist(), "tokens": scores.tokens.tolist(), "groups": scores.groups.tolist()}
        return {**sums, "peak_mem": memory}

    def _protocol(self, run: OpenedRun) -> Protocol:
        length = self.length if self.length is not None else int(run.trained["train_length"])
        stride = self.stride
        if stride is None:
            stride = max(1, length // 2) if self.mode == "sliding" else length
        if stride > length:
            raise ConfigError(f"task.stride={stride}: expected a number in 1..{length} (task.length), or null for it.")
        if stride != length and self.mode in ("window", "stateful"):
            raise ConfigError(f"task.stride={stride} belongs to task.mode=sliding: leave it out for {self.mode}.")
        stateless = "window" if stride == length else "sliding"  # sliding by whole windows is the same
        return Protocol("stateful" if self.mode == "stateful" else stateless, length, stride)

    def _describe(self, run: OpenedRun, corpus: Corpus, scores: DocumentScores, protocol: Protocol) -> dict[str, Any]:
        stateful = protocol.mode == "stateful"
        windows = {"window": protocol.length, "stride": protocol.stride}
        return {
            **({"piece": protocol.length} if stateful else windows),
            **describe_corpus(run, corpus, self.path),
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

    def _stem(self, run: OpenedRun, corpus: Corpus, protocol: Protocol, seed: int) -> str:
        stateful, sliding = protocol.mode == "stateful", protocol.stride != protocol.length
        options = {
            "": "stateful" if stateful else None,
            "length": None if stateful else self.length,
            "stride": protocol.stride if sliding else None,
            "max_bytes": self.max_bytes,
            "max_documents": self.max_documents,
        }
        return result_stem(run, "perplexity", corpus, options, path=self.path, text_column=self.text_column, seed=seed)


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


def _warnings(run: OpenedRun, corpus: Corpus, longest: int, protocol: Protocol) -> list[str]:
    warnings = []
    stateful = protocol.mode == "stateful"
    if not corpus.complete:
        warnings.append(f"Only the first {corpus.count} of {len(corpus.store)} documents were evaluated.")
    if stateful:
        warnings.append(_stateful_warning(run, longest))
    warnings += corpus_warnings(run, corpus, corpus.count, 0 if stateful else protocol.length)
    return warnings


def _stateful_warning(run: OpenedRun, longest: int) -> str:
    growing = split_cache_bytes(run.decoder, longest)[1]
    text = "Stateful: every token sees its whole document, so these numbers are not those of windows; "
    if growing:
        cost = f"{growing / 2**20:.1f} MiB at the longest document, {longest} tokens"
        text += f"softmax layers can do this only with a cache that grows with the document ({cost})"
    else:
        text += f"no layer keeps more for a longer document (the longest has {longest} tokens)"
    if longest > run.trained["train_length"]:
        text += f", and documents are longer than the windows of training ({run.trained['train_length']})"
    return text + "."
