"""Sources that need no download: the source code of Python's standard library, and local files."""

from __future__ import annotations

import hashlib
import os
import re
import sysconfig
from array import array
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from zoo.data.documents import (
    FRACTIONS,
    SPLITS,
    DataError,
    Document,
    DocumentDigest,
    Source,
    assign_splits,
    check_fractions,
    check_split,
    cut_document,
    digest_documents,
    escape_name,
    expand,
    split_index,
    text_hash,
)
from zoo.data.fingerprints import Stamp, stamp_files
from zoo.data.sources.hub import HubSource
from zoo.data.sources.readers import read_files
from zoo.data.sources.text_files import ALL, LocalFiles, find_files
from zoo.paths import PathName
from zoo.registry import SOURCES

__all__ = ["DataError", "Document", "HubSource", "Source", "StdlibSource", "TextSource"]

LEFT_OUT_FOLDERS = {
    "site-packages",
    "dist-packages",
    "lib-dynload",
    "__pycache__",
    "test",
    "tests",
    "idle_test",
    "_bundled",
}
LEFT_OUT_FILES = re.compile(
    r"pydoc_data/|html/entities\.py|_sysconfigdata|config-[^/]*/|(^|/)test_[^/]*\.py$"
    r"|encodings/(cp\d|iso8859|mac_|koi8|kz1048|hp_roman8|palmos|ptcp154|tis_620)"
)
GENERATED = re.compile(
    r"(file|module) (is|was) (auto(matically|-)?\s*)?generated|auto-?generated|automatically generated|"
    r"generated (from|by) \S+ ?(with|by)? gencodec|do not edit",
    re.IGNORECASE,
)
HEAD = 600


@SOURCES.register("stdlib")
class StdlibSource:
    """Source code of the running interpreter's standard library, without tests and generated tables.

    Order and split follow the SHA-256 of the content, so they do not depend on the file system. `root` points at
    another interpreter's library.
    """

    def __init__(self, root: PathName | None = None) -> None:
        self.name = "stdlib"
        self.root = expand(root or sysconfig.get_paths()["stdlib"])

    def documents(self, split: str) -> Iterator[Document]:
        """Yields the modules of one split (about 90/5/5 of the modules), ordered by the hash of their content."""
        check_split(split)
        for hashed, document in self._modules:
            if SPLITS[split_index(hashed >> 192, FRACTIONS)] == split:
                yield document

    def fingerprint(self, split: str) -> str:
        """Returns the SHA-256 over the names and contents of the split's modules."""
        return digest_documents(self.documents(split))

    def stamp(self) -> Stamp:
        """Returns a digest of path, size and times of every module; nothing is read."""
        return stamp_files(["stdlib"], ((path, path.name) for path in self._paths()))

    def _paths(self) -> list[Path]:
        found = []
        for folder, folders, files in os.walk(self.root):
            folders[:] = [name for name in folders if name not in LEFT_OUT_FOLDERS]
            found += [Path(folder, name) for name in files if name.endswith(".py")]
        return sorted(found)

    @cached_property
    def _modules(self) -> list[tuple[int, Document]]:
        found: dict[int, Document] = {}
        for path in self._paths():
            name = path.relative_to(self.root).as_posix()
            text = self._read(path, name)
            if text:
                found.setdefault(int.from_bytes(hashlib.sha256(text.encode()).digest(), "big"), Document(name, text))
        if not found:
            raise DataError(
                f"no Python sources in {self.root}: this interpreter ships its standard library without source files; "
                "use another interpreter, or data=text data.path=FILE"
            )
        return sorted(found.items(), key=lambda item: item[0])

    @staticmethod
    def _read(path: Path, name: str) -> str | None:
        if LEFT_OUT_FILES.search(name):
            return None
        try:
            text = path.read_bytes().decode()
        except (UnicodeDecodeError, OSError):
            return None
        return None if GENERATED.search(text[:HEAD]) else text


@SOURCES.register("text")
class TextSource:
    """Local .txt, .md, .jsonl and .parquet files: one file, a folder (searched recursively) or a glob.

    Text and JSON lines may be compressed (.gz, .bz2, .xz, .zst). Official splits are used, by the names of files or of
    the folders above them: see :func:`zoo.data.sources.splits.recognize_splits`; validation is cut from train if there
    is none. Otherwise documents are divided by the hash of their text, and one or two documents are cut at paragraph
    ends, both by `split_fractions` (train, validation, test). Errors in the files are raised when documents are first
    asked for.
    """

    def __init__(
        self, path: PathName | None, text_column: str = "text", split_fractions: Sequence[float] = FRACTIONS
    ) -> None:
        self.name = escape_name(Path(path).name) if path else "text"
        self.path = path
        self.text_column = text_column
        self.split_fractions = split_fractions

    def documents(self, split: str) -> Iterator[Document]:
        """Yields the documents of one split in the order of file names and lines, without loading files whole."""
        check_split(split)
        files = self._own_split(split)
        if files not in self._divided:
            yield from self._read(files)
            return
        for document, index in self._divide(files):
            if SPLITS[index] == split:
                yield document

    def fingerprint(self, split: str) -> str:
        """Returns the SHA-256 over the names and texts of the split."""
        check_split(split)
        files = self._own_split(split)
        if files in self._divided:
            return self._digests[SPLITS.index(split)].hexdigest()
        return digest_documents(self._read(files))

    def stamp(self) -> Stamp:
        """Returns a digest of the options, and of path, size and times of every file; nothing is read."""
        return find_files(self.path).stamp("text", self.text_column, self._fractions)

    def describe(self) -> dict[str, str]:
        """Describes what was found at the path: where the splits come from, and which files are not read."""
        lines = {"splits": self._splits_line(), "skipped": self._files.skipped_line()}
        return {name: line for name, line in lines.items() if line}

    def _splits_line(self) -> str:
        if ALL in self._files.by_split:
            titles = self._files.titles
            taken = f"; {titles[0]} and {len(titles) - 1:,} more are titles: most files name no split" if titles else ""
            return f"cut from the documents, {_percent(self._fractions)}{taken}"
        line = self._files.splits_line()
        if "validation" not in self._files.by_split:
            return f"{line}; validation: cut from train, {_percent(self._divided['train'][:2])}"
        return line if "test" in self._files.by_split else f"{line}; test: none"

    def check(self) -> None:
        """Checks that there is a file of a known kind at `path`, and the fractions; nothing is read.

        Raises:
            DataError: if not.
        """
        self._files  # noqa: B018
        self._fractions  # noqa: B018

    @cached_property
    def _files(self) -> LocalFiles:
        return find_files(self.path)

    @cached_property
    def _fractions(self) -> tuple[float, float, float]:
        return check_fractions(self.split_fractions)

    @cached_property
    def _divided(self) -> dict[str, tuple[float, float, float]]:
        """Which files hold more than one split, and the fractions of those."""
        if ALL in self._files.by_split:
            return {ALL: self._fractions}
        train, validation, test = self._fractions
        return {} if "validation" in self._files.by_split else {"train": (train + test, validation, 0.0)}

    def _own_split(self, split: str) -> str:
        found = self._files.by_split
        if ALL in found:
            return ALL
        if split in found:
            return split
        if split == "validation":
            return "train"
        raise DataError(
            f"data.path={self.path} has files for {', '.join(found)} but none for {split!r}: "
            f"add a folder named {split}/ or a file named {split}.txt, or name none after a split to have all divided"
        )

    def _read(self, files: str) -> Iterator[Document]:
        return read_files(self._files.by_split[files], self.text_column)

    def _divide(self, files: str) -> Iterator[tuple[Document, int]]:
        """Every document of some files, or part of one, with the index of its split."""
        if self._assigned is not None:
            yield from zip(self._read(files), self._assigned.tolist(), strict=True)
            return
        for document in self._read(files):
            for index, text in enumerate(cut_document(document.text, self._divided[files])):
                if text:
                    yield Document(document.name, text), index

    @cached_property
    def _digests(self) -> list[DocumentDigest]:
        """Of all splits that are divided, from one pass over the files."""
        (files,) = self._divided
        digests = [DocumentDigest() for _ in SPLITS]
        for document, index in self._divide(files):
            digests[index].update(document)
        return digests

    @cached_property
    def _assigned(self) -> np.ndarray | None:
        """Split index of every document; None if there are so few that each is cut by its text."""
        ((files, fractions),) = self._divided.items()
        hashes = np.array(array("Q", (text_hash(document.text) for document in self._read(files))), dtype=np.uint64)
        if len(hashes) == 0:
            raise DataError(f"data.path={self.path}: the files hold no text; expected at least one document")
        assigned = assign_splits(hashes, fractions)
        if assigned is not None or self._cut_fills(files, fractions):
            return assigned
        whole = assign_splits(hashes, (fractions[0] + fractions[2], fractions[1], 0.0))
        if whole is None:
            size = max(len(document.text) for document in self._read(files))
            raise DataError(
                f"data.path={self.path} has one text of {size} characters, too few to cut train and validation from: "
                "give a longer one, or files or folders named train and validation"
            )
        return whole

    def _cut_fills(self, files: str, fractions: Sequence[float]) -> bool:
        """Whether every split gets some text if each document is cut."""
        pieces = (cut_document(document.text, fractions) for document in self._read(files))
        found = {index for parts in pieces for index, text in enumerate(parts) if text}
        return found == {index for index in range(3) if fractions[index] > 0}


def _percent(fractions: Sequence[float]) -> str:
    return "/".join(f"{100 * fraction:g}" for fraction in fractions)
