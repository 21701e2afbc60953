"""Readers of text, Markdown, JSON lines and Parquet files, of which the first three may be compressed."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from zoo.data.documents import DataError, Document, Named


def _open_zstd(path: Path) -> IO[bytes]:
    import pyarrow as pa

    return cast("IO[bytes]", io.BufferedReader(pa.input_stream(str(path), compression="zstd")))


COMPRESSIONS: dict[str, Callable[..., Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": _open_zstd,
}


def open_bytes(path: Path) -> IO[bytes]:
    """Opens a file for reading, decompressed if its name ends in .gz, .bz2, .xz or .zst."""
    opener = COMPRESSIONS.get(path.suffix.lower())
    return path.open("rb") if opener is None else cast("IO[bytes]", opener(path))


def content_suffix(path: Path) -> str:
    """Returns the lower-case suffix of a file, without that of its compression: `.txt` of `A.TXT.gz`."""
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() if suffix in COMPRESSIONS else suffix


def content_stem(path: Path) -> str:
    """Returns the name without the suffixes of its compression and its format."""
    return Path(path.stem).stem if path.suffix.lower() in COMPRESSIONS else path.stem


def is_readable(path: Path) -> bool:
    """Returns whether there is a reader for the suffix."""
    compressed = path.suffix.lower() in COMPRESSIONS
    return content_suffix(path) in READERS and not (compressed and content_suffix(path) == ".parquet")


def read_text(path: Path, name: str, column: str) -> Iterator[Document]:
    """Yields the whole file as one document; a byte-order mark is dropped, nothing else is changed."""
    with open_bytes(path) as file:
        yield Document(name, decode(file.read(), path, 0))


def read_jsonl(path: Path, name: str, column: str) -> Iterator[Document]:
    """Yields one document per line, from the field `column`; lines are read one at a time."""
    offset = 0
    with open_bytes(path) as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                text = _field(decode(line, path, offset), path, number, column)
                if text:
                    yield Document(f"{name}:{number}", text)
            offset += len(line)


def read_parquet(path: Path, name: str, column: str) -> Iterator[Document]:
    """Yields one document per row, from the column `column`; a part of one row group is in memory at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with path.open("rb") as file, pq.ParquetFile(file) as table:
            if column not in table.schema_arrow.names:
                raise _no_column(str(path), column, table.schema_arrow.names)
            row = 0
            for batch in table.iter_batches(batch_size=1024, columns=[column]):
                for text in batch.column(0).to_pylist():
                    row += 1
                    if text is not None and not isinstance(text, str):
                        raise DataError(f"{path}: column {column!r} holds {type(text).__name__}, expected strings")
                    if text:
                        yield Document(f"{name}:{row}", text)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not a readable Parquet file ({error}): replace or remove it") from error


READERS: dict[str, Callable[[Path, str, str], Iterator[Document]]] = {
    ".txt": read_text,
    ".md": read_text,
    ".jsonl": read_jsonl,
    ".parquet": read_parquet,
}


def read_whole(path: Path) -> str:
    """Reads the text of a file, decompressed and without a byte-order mark.

    Raises:
        DataError: if it cannot be read.
    """
    with _explained(path), open_bytes(path) as file:
        return decode(file.read(), path, 0)


def read_files(files: list[tuple[Path, str]], column: str) -> Iterator[Document]:
    """Yields the documents of (path, name) pairs in order; documents without any text are left out."""
    for path, name in files:
        with _explained(path):
            for document in READERS[content_suffix(path)](path, name, column):
                if document.text:
                    yield document


def decode(raw: bytes, path: Path, offset: int) -> str:
    """Decodes the bytes of a file from `offset` on, without a byte-order mark.

    Raises:
        DataError: on a byte that is not UTF-8.
    """
    skip = len(codecs.BOM_UTF8) if offset == 0 and raw.startswith(codecs.BOM_UTF8) else 0
    try:
        return raw[skip:].decode("utf-8")
    except UnicodeDecodeError as error:
        at = offset + skip + error.start
        raise DataError(
            f"{path} is not UTF-8: byte {raw[skip + error.start]:#04x} at offset {at}; "
            "convert it first, for example with iconv -t UTF-8"
        ) from error


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Errors of a file system or a decompressor as DataError."""
    try:
        yield
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
        raise DataError(
            f"{path} cannot be decompressed ({error or type(error).__name__}): replace or remove it"
        ) from error


def _field(line: str, path: Path, number: int, column: str) -> str:
    where = f"{path}, line {number}"
    try:
        row = json.loads(line.rstrip("\r\n"))
    except json.JSONDecodeError as error:
        reason = f"{error.msg.removesuffix(' at')} at column {error.colno}"
        raise DataError(f"{where}: not JSON ({reason}), expected one object on a line") from error
    if not isinstance(row, dict):
        raise DataError(f'{where}: a JSON {type(row).__name__}, expected an object like {{"{column}": "..."}}')
    if column not in row:
        raise _no_column(where, column, list(row))
    text = row[column]
    if text is None:
        return ""
    if not isinstance(text, str):
        raise DataError(f"{where}: field {column!r} holds {type(text).__name__}, expected a string")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where}: half of a surrogate pair at character {error.start} cannot be written as UTF-8"
        ) from error
    return text


def _no_column(where: str, column: str, names: list[str]) -> DataError:
    return DataError(
        f"{where}: no column {column!r}; columns are {', '.join(names) or '(none)'}: ",
        Named("text_column", "choose one with {}=...", "rename the one to be read"),
    )
