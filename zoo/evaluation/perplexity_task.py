"""The task "perplexity": perplexity and bits per byte of held-out documents."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import Any

import torch

from zoo.config import ConfigError
from zoo.evaluation.corpus import Corpus, open_corpus
from zoo.evaluation.perplexity import DocumentScores, estimate_metrics, evaluate_perplexity
from zoo.evaluation.progress import progress_bar
from zoo.evaluation.results import Record
from zoo.evaluation.run import OpenedRun
from zoo.evaluation.tasks import Outcome

FEW = 10  # documents below which a bootstrap interval is rough


@dataclass(frozen=True)
class PerplexityTask:
    """Perplexity of a split of the run's data, or of other local text.

    Attributes:
        split: train, validation or test.
        path: other local text (file, folder or glob), which is read whole; None for the run's data.
        text_column: of jsonl and parquet files at ``path``.
        length: tokens of context per window, None for the length the run was trained with.
        stride: tokens scored per window, None for ``length``; smaller gives more context and takes longer.
        batch_tokens: inputs per forward pass; does not change the result.
        max_bytes, max_documents: evaluate only the first whole documents within these caps; None for all.
    """

    split: str = "test"
    path: str | None = None
    text_column: str = "text"
    length: int | None = None
    stride: int | None = None
    batch_tokens: int = 8_192
    max_bytes: int | None = None
    max_documents: int | None = None

    def evaluate(self, run: OpenedRun, seed: int) -> Outcome:
        """See :class:`zoo.evaluation.tasks.Task`.

        Raises:
            ConfigError: on a length, stride or batch_tokens out of range. DataError: if there is no such text.
        """
        length, stride = self._windows(run)
        corpus = open_corpus(run, self.split, self.path, self.text_column, self.max_bytes, self.max_documents)
        begun = time.monotonic()
        scores = self._score(run, corpus, length, stride)
        seconds = time.monotonic() - begun
        records = self._records(run, scores, length, stride, seed, seconds)
        return Outcome(
            stem=self._stem(run, corpus),
            title=f"{corpus.name} ({corpus.split})",
            protocol=self._protocol(run, corpus, scores, length, stride),
            records=records,
            samples=_samples(corpus, scores),
            warnings=_warnings(run, corpus, records, length),
            bytes_per_token=float(scores.bytes.sum() / scores.tokens.sum()),
        )

    def _windows(self, run: OpenedRun) -> tuple[int, int]:
        length = self.length if self.length is not None else int(run.trained["train_length"])
        stride = self.stride if self.stride is not None else length
        if length < 1:
            raise ConfigError(f"task.length={length}: expected a number >= 1, or null for the trained length.")
        if not 1 <= stride <= length:
            raise ConfigError(f"task.stride={stride}: expected a number in 1..{length} (task.length), or null for it.")
        if self.batch_tokens < 1:
            raise ConfigError(f"task.batch_tokens={self.batch_tokens}: expected a number >= 1.")
        return length, stride

    def _score(self, run: OpenedRun, corpus: Corpus, length: int, stride: int) -> DocumentScores:
        if run.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(run.device)
        with progress_bar(f"scoring {corpus.name} ({corpus.split})", corpus.num_tokens) as advance:
            return evaluate_perplexity(
                run.decoder,
                corpus.documents(),
                corpus.counts,
                run.document_token,
                length,
                stride,
                self.batch_tokens,
                advance,
            )

    @staticmethod
    def _records(
        run: OpenedRun, scores: DocumentScores, length: int, stride: int, seed: int, seconds: float
    ) -> list[Record]:
        memory = torch.cuda.max_memory_allocated(run.device) if run.device.type == "cuda" else None
        return [
            Record(
                task="perplexity",
                variant="window" if stride == length else "sliding",
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

    def _protocol(
        self, run: OpenedRun, corpus: Corpus, scores: DocumentScores, length: int, stride: int
    ) -> dict[str, Any]:
        source = run.config.data.source
        return {
            "window": length,
            "stride": stride,
            "bos": "first",
            "doc": "separate",
            "join": str(source.get("join", "none")) if self.path is None else "none",
            "stateful": False,
            "data": corpus.name,
            "split": corpus.split,
            "path": self.path,
            "data_sha": corpus.store.key,
            "documents": corpus.count,
            "documents_in_split": len(corpus.store),
            "tokens": int(scores.tokens.sum()),
            "bytes": int(scores.bytes.sum()),
            "words": int(scores.words.sum()),
            "max_bytes": self.max_bytes,
            "max_documents": self.max_documents,
            "complete": corpus.complete,
        }

    def _stem(self, run: OpenedRun, corpus: Corpus) -> str:
        """Options that are not the default are part of the name, so that one result does not replace another."""
        parts = ["perplexity", corpus.name, corpus.split]
        if run.checkpoint != "last":
            parts.append(run.checkpoint)
        options = ("length", "stride", "max_bytes", "max_documents")
        parts += [f"{name}{getattr(self, name)}" for name in options if getattr(self, name) is not None]
        return "-".join(re.sub(r"[^\w.-]+", "_", part) for part in parts)


def _samples(corpus: Corpus, scores: DocumentScores) -> list[dict[str, Any]]:
    columns = zip(corpus.names, scores.nats.tolist(), scores.tokens.tolist(), scores.bytes.tolist())
    samples = [{"id": name, "nats": nats, "tokens": tokens, "bytes": size} for name, nats, tokens, size in columns]
    return [sample | {"words": words} for sample, words in zip(samples, scores.words.tolist())]


def _warnings(run: OpenedRun, corpus: Corpus, records: list[Record], length: int) -> list[str]:
    warnings = []
    if not corpus.complete:
        warnings.append(f"Only the first {corpus.count} of {len(corpus.store)} documents were evaluated.")
    trained = (run.trained.get("data") or {}).get(corpus.split)
    if corpus.split == "train":
        warnings.append("The model was trained on this text: the numbers do not say how it does on other text.")
    if trained not in (None, corpus.store.key) and corpus.name == run.config.data.get("name"):
        warnings.append(f"The {corpus.split} split is not the one of training: the data have changed since.")
    if length > run.trained["train_length"]:
        warnings.append(
            f"Windows of {length} tokens are longer than those of training ({run.trained['train_length']})."
        )
    if corpus.count == 1:
        warnings.append("There is one document, so there are no intervals.")
    elif corpus.count < FEW:
        warnings.append(f"Intervals over {corpus.count} documents are rough.")
    undefined = [record.metric for record in records if record.value is None]
    if undefined:
        warnings.append(f"Not finite, and left out: {', '.join(undefined)}.")
    return warnings
