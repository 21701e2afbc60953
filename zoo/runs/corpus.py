"""Corpora of an evaluation: a split of the run's own data, or other local text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zoo.data import DataError, Document, Source, TokenStore, token_byte_lengths, vocabulary_size
from zoo.data.documents import SPLITS, Named, digest_documents, escape_name, source_notes
from zoo.data.fingerprints import Stamp
from zoo.data.sources.build import build_source
from zoo.data.sources.readers import read_files
from zoo.data.sources.text_files import ALL as WHOLE
from zoo.data.sources.text_files import find_files
from zoo.runs.subject import Subject

FEW = 10  # documents below which a bootstrap interval is rough
PART = 2**18


@dataclass(frozen=True)
class Corpus:
    """Documents to evaluate, the first ``count`` of those in the store.

    Attributes:
        name: name of the data set.
        split: split of the data set, ``all`` for undivided text.
        store: tokens of all documents of the split.
        count: number of whole documents that are evaluated.
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
        """UTF-8 bytes, words and characters of each evaluated document's original text, ``(count, 3)``."""
        return self.store.counts[: self.count]

    @property
    def names(self) -> list[str]:
        """Names of the evaluated documents."""
        return self.store.names[: self.count]

    @property
    def sizes(self) -> np.ndarray:
        """Number of tokens of each evaluated document, without the document token, ``(count,)``."""
        return np.diff(self.store.offsets[: self.count + 1]) - 1

    @property
    def num_tokens(self) -> int:
        """Number of tokens that will be scored."""
        return int(self.store.offsets[self.count]) - self.count

    def documents(self, part: slice = slice(None)) -> Iterator[np.ndarray]:
        """Yields the token ids of each evaluated document, or of those of ``part``, without the document token."""
        return (self.store.document(index) for index in range(self.count)[part])

    def span(self, index: int, start: int, stop: int) -> np.ndarray:
        """Returns tokens ``start .. stop - 1`` of a document, int64; -1 stands for the document token before it."""
        return self.store.tokens[self.store.offsets[index] + 1 + start : self.store.offsets[index] + 1 + stop].astype(
            np.int64
        )


def cut_parts(sizes: Sequence[int] | np.ndarray) -> Iterator[slice]:
    """Yields slices of consecutive documents of at least PART tokens together, the last one of the rest; none is empty.

    Scores of a part are stored when it is finished, so that an evaluation that was killed resumes from there.
    """
    start, held = 0, 0
    for stop, size in enumerate(sizes, 1):
        held += int(size)
        if held >= PART or stop == len(sizes):
            yield slice(start, stop)
            start, held = stop, 0


class LocalText:
    """Local text, undivided, as the split ``all``; official splits (see TextSource) stay separate."""

    def __init__(self, path: str, text_column: str = "text") -> None:
        self.path, self.text_column = path, text_column
        try:
            self.files = find_files(path)
        except DataError as error:
            error.call("task.")
            raise
        self.name = escape_name(Path(path).name) or "text"

    def documents(self, split: str) -> Iterator[Document]:
        """Yields the documents of one split in the order of file names and lines."""
        try:
            if split not in self.files.by_split:
                raise DataError(Named("path"), f" has no files for the split {split!r}")
            yield from read_files(self.files.by_split[split], self.text_column)
        except DataError as error:
            error.call("task.")
            raise

    def fingerprint(self, split: str) -> str:
        """Returns the SHA-256 over the names and texts of the split."""
        return digest_documents(self.documents(split))

    def stamp(self) -> Stamp:
        """Returns a digest of the options, and of path, size and times of every file; nothing is read."""
        return find_files(self.path).stamp("local", self.text_column)

    def describe(self) -> dict[str, str]:
        """Describes official splits and files that are not read."""
        lines = {"splits": self.files.splits_line(), "skipped": self.files.skipped_line()}
        return {name: line for name, line in lines.items() if line}


def open_corpus(
    subject: Subject,
    split: str = "test",
    path: str | None = None,
    text_column: str = "text",
    max_bytes: int | None = None,
    max_documents: int | None = None,
) -> Corpus:
    """Opens the documents of a split of the run's data, or of the local text at ``path``, with the run's tokenizer.

    Raises:
        DataError: if the split does not exist (the message lists those that do), or a cap is below 1.
    """
    source: Source
    if path is None:
        source, name = build_source(subject.text.source), subject.text.name
    else:
        source = LocalText(path, text_column)
        name, split = source.name, WHOLE if WHOLE in source.files.by_split else split
    try:
        store = TokenStore.open_or_build(source, split, subject.tokenizer, subject.text.cache_dir)
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
    """Returns a sentence on files that a source of local text does not read; none if it reads all."""
    skipped = source_notes(source).get("skipped")
    return (f"Of task.path, {skipped}.",) if skipped else ()


def existing_splits(source: Source) -> list[str]:
    """Returns the splits of a source that contain at least one document."""
    existing = []
    for split in SPLITS:
        try:
            if next(iter(source.documents(split)), None) is not None:
                existing.append(split)
        except DataError:
            continue
    return existing


def count_documents(sizes: np.ndarray, max_bytes: int | None = None, max_documents: int | None = None) -> int:
    """Counts how many whole documents, from the first on, fit both caps; at least one.

    Args:
        sizes: ``(documents,)`` bytes of each document.
        max_bytes: cap on the bytes together; None for none.
        max_documents: cap on the documents; None for none.

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


def describe_corpus(subject: Subject, corpus: Corpus, path: str | None) -> dict[str, Any]:
    """Returns the part of a protocol that says which text was read, and how."""
    return {
        "bos": "first",
        "doc": "separate",
        "join": str(subject.text.source.get("join", "none")) if path is None else "none",
        "data": corpus.name,
        "split": corpus.split,
        "path": None if path is None else escape_name(path),
        "data_sha": corpus.store.key,
        "documents_in_split": len(corpus.store),
    }


def corpus_warnings(subject: Subject, corpus: Corpus, documents: int, length: int) -> list[str]:
    """Returns warnings on what so many documents, with contexts of ``length`` tokens, cannot show."""
    warnings = list(corpus.notes)
    trained = subject.text.keys.get(corpus.split)
    if corpus.split == "train":
        warnings.append("The model was trained on this text: the numbers do not say how it does on other text.")
    if trained not in (None, corpus.store.key) and corpus.name == subject.text.name:
        warnings.append(f"The {corpus.split} split is not the one of training: the data have changed since.")
    if length > subject.train_length:
        warnings.append(f"Windows of {length} tokens are longer than those of training ({subject.train_length}).")
    if documents == 1:
        warnings.append("There is one document, so there are no intervals.")
    elif documents < FEW:
        warnings.append(f"Intervals over {documents} documents are rough.")
    return warnings


def token_bytes(subject: Subject) -> tuple[np.ndarray, list[str]]:
    """Returns the bytes of each token id, and warnings; zeros and a warning where tokens have no fixed bytes."""
    try:
        return token_byte_lengths(subject.tokenizer), []
    except DataError as error:
        zeros = np.zeros(vocabulary_size(subject.tokenizer), dtype=np.int64)
        return zeros, [f"There are no bits per byte of parts of the text: {error}."]
