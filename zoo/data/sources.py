"""Sources that need no download: the Python standard library's own source, and local files."""

from __future__ import annotations

import hashlib
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
    Source,
    assign_splits,
    check_fractions,
    check_split,
    cut_document,
    digest_documents,
    split_index,
    text_hash,
)
from zoo.data.files import find_files, read_files
from zoo.data.hub import HubSource

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


class StdlibSource:
    """Python sources of the running interpreter's standard library, without tests and generated tables.

    Order and split follow the SHA-256 of the content, so they do not depend on the file system. `root` points at
    another interpreter's library.
    """

    def __init__(self, root: str | None = None) -> None:
        self.name = "stdlib"
        self.root = Path(root or sysconfig.get_paths()["stdlib"]).expanduser()

    def documents(self, split: str) -> Iterator[Document]:
        """Modules of one split (about 90/5/5 of the modules), ordered by the hash of their content."""
        check_split(split)
        for hashed, document in self._modules:
            if SPLITS[split_index(hashed >> 192, FRACTIONS)] == split:
                yield document

    def fingerprint(self, split: str) -> str:
        """SHA-256 over the names and contents of the split's modules."""
        return digest_documents(self.documents(split))

    @cached_property
    def _modules(self) -> list[tuple[int, Document]]:
        found: dict[int, Document] = {}
        for path in sorted(self.root.rglob("*.py")):
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
        if LEFT_OUT_FOLDERS & set(Path(name).parts[:-1]) or LEFT_OUT_FILES.search(name):
            return None
        try:
            text = path.read_bytes().decode()
        except (UnicodeDecodeError, OSError):
            return None
        return None if GENERATED.search(text[:HEAD]) else text


class TextSource:
    """Local .txt, .md, .jsonl and .parquet files: one file, a folder (searched recursively) or a glob.

    A folder with train/ and validation/ (or valid/, val/, dev/) and perhaps test/ brings its own splits. Otherwise
    documents are divided by the hash of their text, and a single document is cut at paragraph ends, both by
    `split_fractions` (train, validation, test). Errors in the files are raised when documents are first asked for.
    """

    def __init__(
        self, path: str | None, text_column: str = "text", split_fractions: Sequence[float] = FRACTIONS
    ) -> None:
        self.name = Path(path).name if path else "text"
        self.path = path
        self.text_column = text_column
        self.split_fractions = split_fractions

    def documents(self, split: str) -> Iterator[Document]:
        """Documents of one split in the order of file names and lines; files are streamed, not held in memory."""
        check_split(split)
        if "all" not in self._files:
            yield from self._read(self._own_split(split))
        elif len(self._assigned) == 1:
            document = next(self._read("all"))
            text = cut_document(document.text, self._fractions, document.name)[SPLITS.index(split)]
            if text:
                yield Document(document.name, text)
        else:
            for document, index in zip(self._read("all"), self._assigned, strict=True):
                if SPLITS[index] == split:
                    yield document

    def fingerprint(self, split: str) -> str:
        """SHA-256 over the names and texts of the split; reads the files once."""
        return digest_documents(self.documents(split))

    @cached_property
    def _files(self) -> dict[str, list[tuple[Path, str]]]:
        return find_files(self.path)

    @cached_property
    def _fractions(self) -> tuple[float, float, float]:
        return check_fractions(self.split_fractions)

    def _own_split(self, split: str) -> str:
        if split not in self._files:
            raise DataError(
                f"data.path={self.path} has folders for {', '.join(self._files)} but none for {split!r}: "
                f"add a folder named {split}/, or put all files in one folder to have them divided"
            )
        return split

    def _read(self, split: str) -> Iterator[Document]:
        return read_files(self._files[split], self.text_column)

    @cached_property
    def _assigned(self) -> np.ndarray:
        fractions = self._fractions
        hashes = np.array(array("Q", (text_hash(document.text) for document in self._read("all"))), dtype=np.uint64)
        if len(hashes) == 0:
            raise DataError(f"data.path={self.path}: the files hold no text; expected at least one document")
        return np.zeros(1, np.uint8) if len(hashes) == 1 else assign_splits(hashes, fractions)
