"""The documents that an evaluation reads: a split of the run's own data, or other local text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zoo.config import to_dict
from zoo.data import DataError, Document, Source, TokenStore, token_byte_lengths, vocabulary_size
from zoo.data.documents import SPLITS, digest_documents, escape_name, source_notes
from zoo.data.sources.build import build_source
from zoo.data.sources.readers import read_files
from zoo.data.sources.text_files import ALL as WHOLE
from zoo.data.sources.text_files import find_files
from zoo.data.store.fingerprints import Stamp
from zoo.runs.file_names import changed_options, join_name, path_part, plain
from zoo.runs.loaded_run import OpenedRun

FEW = 10  # documents below which a bootstrap interval is rough
PART = 2**18


@dataclass(frozen=True)
class Corpus:
    """Documents to evaluate, the first ``count`` of those in the store.

    Attributes:
        name: of the data set. split: of it, ``all`` for undivided text.
        store: tokens of all documents of the split. count: whole documents that are evaluated.
        notes: sentences on files at task.path that are not read.
    """

    name: str
    split: str
    store: TokenStore
    count: int
    notes: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether every document of the split is evaluated."""
        return self.count == len(self.store)

    @property
    def counts(self) -> np.ndarray:
        """``(count, 3)``: UTF-8 bytes, words and characters of each evaluated document's original text."""
        return self.store.counts[: self.count]

    @property
    def names(self) -> list[str]:
        """Names of the evaluated documents."""
        return self.store.names[: self.count]

    @property
    def sizes(self) -> np.ndarray:
        """``(count,)`` tokens of each evaluated document, without the document token."""
        return np.diff(self.store.offsets[: self.count + 1]) - 1

    @property
    def num_tokens(self) -> int:
        """Tokens that will be scored."""
        return int(self.store.offsets[self.count]) - self.count

    def documents(self, part: slice = slice(None)) -> Iterator[np.ndarray]:
        """Token ids of each evaluated document, or of those of ``part``, in order, without the document token."""
        return (self.store.document(index) for index in range(self.count)[part])

    def span(self, index: int, start: int, stop: int) -> np.ndarray:
        """Tokens ``start .. stop - 1`` of a document, int64, where -1 stands for the document token in front of it."""
        return self.store.tokens[self.store.offsets[index] + 1 + start : self.store.offsets[index] + 1 + stop].astype(
            np.int64
        )


def cut_parts(sizes: Sequence[int] | np.ndarray) -> Iterator[slice]:
    """Slices of consecutive documents of so many tokens: at least PART together, but for the last one; none is empty.

    What has been scored of one is kept when it is finished, so that an evaluation that was killed goes on from there.
    """
    start, held = 0, 0
    for stop, size in enumerate(sizes, 1):
        held += int(size)
        if held >= PART or stop == len(sizes):
            yield slice(start, stop)
            start, held = stop, 0


class LocalText:
    """Local text, undivided, as the split ``all``; official splits (see TextSource) are kept apart."""

    def __init__(self, path: str, text_column: str = "text") -> None:
        self.path, self.text_column = path, text_column
        try:
            self.files = find_files(path)
        except DataError as error:
            raise DataError(_rename(error)) from error
        self.name = escape_name(Path(path).name) or "text"

    def documents(self, split: str) -> Iterator[Document]:
        """Documents of one split in the order of file names and lines."""
        if split not in self.files.by_split:
            raise DataError(f"task.path has no files for the split {split!r}")
        try:
            yield from read_files(self.files.by_split[split], self.text_column)
        except DataError as error:
            raise DataError(_rename(error)) from error

    def fingerprint(self, split: str) -> str:
        """SHA-256 over the names and texts of the split."""
        return digest_documents(self.documents(split))

    def stamp(self) -> Stamp:
        """What the documents depend on; nothing is read."""
        return find_files(self.path).stamp("local", self.text_column)

    def describe(self) -> dict[str, str]:
        """Official splits and files that are not read, in words."""
        lines = {"splits": self.files.splits_line(), "skipped": self.files.skipped_line()}
        return {name: line for name, line in lines.items() if line}


def _rename(error: DataError) -> str:
    return str(error).replace("data.path", "task.path").replace("data.source.text_column", "task.text_column")


def open_corpus(
    run: OpenedRun,
    split: str = "test",
    path: str | None = None,
    text_column: str = "text",
    max_bytes: int | None = None,
    max_documents: int | None = None,
) -> Corpus:
    """The documents of a split of the run's data, or of the local text at ``path``, as tokens of the run's tokenizer.

    Raises:
        DataError: if the split does not exist (the message lists those that do), or a cap is below 1.
    """
    source: Source
    if path is None:
        source, name = build_source(to_dict(run.config.data.source)), str(run.config.data.get("name", "data"))
    else:
        source = LocalText(path, text_column)
        name, split = source.name, WHOLE if WHOLE in source.files.by_split else split
    try:
        store = TokenStore.open_or_build(source, split, run.tokenizer, run.config.data.cache_dir)
    except DataError as error:
        existing = [] if split == WHOLE else existing_splits(source)
        if not existing or split in existing:
            raise
        listed = ", ".join(existing)
        raise DataError(
            f"{name} has no split {split!r} ({error}). It has {listed}: choose with task.split=..."
        ) from error
    notes = () if path is None else skipped_notes(source)
    return Corpus(name, split, store, count_documents(store.counts[:, 0], max_bytes, max_documents), notes)


def skipped_notes(source: Source) -> tuple[str, ...]:
    """A sentence on files that a source of local text does not read; none if it reads all."""
    skipped = source_notes(source).get("skipped")
    return (f"Of task.path, {skipped}.",) if skipped else ()


def existing_splits(source: Source) -> list[str]:
    """Splits of a source that hold at least one document."""
    existing = []
    for split in SPLITS:
        try:
            if next(iter(source.documents(split)), None) is not None:
                existing.append(split)
        except DataError:
            continue
    return existing


def count_documents(sizes: np.ndarray, max_bytes: int | None = None, max_documents: int | None = None) -> int:
    """How many whole documents, from the first on, fit both caps; at least one.

    Args:
        sizes: ``(documents,)`` bytes of each.

    Raises:
        DataError: if a cap is below 1.
    """
    for name, cap in (("max_bytes", max_bytes), ("max_documents", max_documents)):
        if cap is not None and cap < 1:
            raise DataError(f"task.{name}={cap}: expected a number >= 1, or null for all documents.")
    count = len(sizes) if max_documents is None else min(len(sizes), max_documents)
    if max_bytes is not None:
        count = min(count, int(np.searchsorted(np.cumsum(sizes), max_bytes, side="right")))
    return max(1, count)


def describe_corpus(run: OpenedRun, corpus: Corpus, path: str | None) -> dict[str, Any]:
    """What of a protocol says which text was read, and how."""
    return {
        "bos": "first",
        "doc": "separate",
        "join": str(run.config.data.source.get("join", "none")) if path is None else "none",
        "data": corpus.name,
        "split": corpus.split,
        "path": None if path is None else escape_name(path),
        "data_sha": corpus.store.key,
        "documents_in_split": len(corpus.store),
    }


def corpus_warnings(run: OpenedRun, corpus: Corpus, documents: int, length: int) -> list[str]:
    """Sentences on what an evaluation of so many documents, with contexts of ``length`` tokens, cannot tell."""
    warnings = list(corpus.notes)
    trained = (run.trained.get("data") or {}).get(corpus.split)
    if corpus.split == "train":
        warnings.append("The model was trained on this text: the numbers do not say how it does on other text.")
    if trained not in (None, corpus.store.key) and corpus.name == run.config.data.get("name"):
        warnings.append(f"The {corpus.split} split is not the one of training: the data have changed since.")
    if length > run.trained["train_length"]:
        warnings.append(
            f"Windows of {length} tokens are longer than those of training ({run.trained['train_length']})."
        )
    if documents == 1:
        warnings.append("There is one document, so there are no intervals.")
    elif documents < FEW:
        warnings.append(f"Intervals over {documents} documents are rough.")
    return warnings


def result_stem(
    run: OpenedRun,
    task: str,
    corpus: Corpus,
    options: Mapping[str, Any],
    *,
    path: str | None,
    text_column: str,
    seed: int,
) -> str:
    """Name of a result file: options that are not None are part of it, so that no result replaces another.

    Args:
        path, text_column, seed: as they were asked for; they are part of the name unless they are the defaults.
    """
    parts = [task, corpus.name, corpus.split]
    if run.checkpoint != "last":
        parts.append(run.checkpoint)
    parts += [f"{name}{plain(value)}" for name, value in options.items() if value is not None]
    parts += [path_part(path)] if path is not None else []
    parts += changed_options({"text_column": text_column, "seed": seed}, {"text_column": "text", "seed": 0})
    return join_name(parts)


def token_bytes(run: OpenedRun) -> tuple[np.ndarray, list[str]]:
    """Bytes of each token id, and no warning; zeros and a warning where a tokenizer's tokens have no fixed bytes."""
    try:
        return token_byte_lengths(run.tokenizer), []
    except DataError as error:
        zeros = np.zeros(vocabulary_size(run.tokenizer), dtype=np.int64)
        return zeros, [f"There are no bits per byte of parts of the text: {error}."]
