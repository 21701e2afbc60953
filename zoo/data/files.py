"""Readers of local text, Markdown, JSON lines and Parquet files, and the search for them."""

from __future__ import annotations

import codecs
import glob
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from zoo.data.documents import DataError, Document

SPLIT_FOLDERS = {"train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}


def read_text(path: Path, name: str, column: str) -> Iterator[Document]:
    """The whole file as one document; a byte-order mark is dropped, nothing else is changed."""
    yield Document(name, _decode(path.read_bytes(), path, 0))


def read_jsonl(path: Path, name: str, column: str) -> Iterator[Document]:
    """One document per line, from the field `column`; lines are read one at a time."""
    offset = 0
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                text = _field(_decode(line, path, offset), path, number, column)
                if text:
                    yield Document(f"{name}:{number}", text)
            offset += len(line)


def read_parquet(path: Path, name: str, column: str) -> Iterator[Document]:
    """One document per row, from the column `column`; a part of one row group is in memory at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as table:
            if column not in table.schema_arrow.names:
                raise DataError(_no_column(str(path), column, table.schema_arrow.names))
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


def read_files(files: list[tuple[Path, str]], column: str) -> Iterator[Document]:
    """Documents of (path, name) pairs in order; documents without any text are left out."""
    for path, name in files:
        try:
            for document in READERS[path.suffix.lower()](path, name, column):
                if document.text:
                    yield document
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror or error}") from error


def find_files(path: str | None) -> dict[str, list[tuple[Path, str]]]:
    """Files of a file, folder or glob as (path, name) pairs by split; a folder without split folders has only "all"."""
    if path is None or str(path) == "":
        raise DataError(
            "data.path is not set: expected a file, a folder or a glob of .txt, .md, .jsonl or .parquet files, "
            "for example data.path=book.txt"
        )
    root = Path(path).expanduser()
    if root.is_dir():
        folders = _split_folders(root)
        if folders:
            return {split: _supported(_walk(folder), root, str(folder)) for split, folder in folders.items()}
        return {"all": _supported(_walk(root), root, str(path))}
    if root.is_file():
        return {"all": _supported([root], root.parent, str(path))}
    found = [Path(match) for match in sorted(glob.glob(str(root), recursive=True)) if os.path.isfile(match)]
    if not found:
        raise DataError(f"data.path={path}: no such file or folder, and no file matches it as a glob; check the path")
    return {"all": _supported(found, Path(os.path.commonpath([str(match.parent) for match in found])), str(path))}


def _split_folders(root: Path) -> dict[str, Path]:
    found = {}
    for split, names in SPLIT_FOLDERS.items():
        folders = [root / name for name in names if (root / name).is_dir()]
        if folders:
            found[split] = folders[0]
    return found if "train" in found else {}


def _walk(folder: Path) -> list[Path]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return [path for path in files if not any(part.startswith(".") for part in path.relative_to(folder).parts)]


def _supported(files: list[Path], root: Path, shown: str) -> list[tuple[Path, str]]:
    known = [(path, path.relative_to(root).as_posix()) for path in files if path.suffix.lower() in READERS]
    if not known:
        extensions = sorted({path.suffix.lower() or "(no extension)" for path in files})
        raise DataError(
            f"data.path={shown}: no file with a supported extension ({', '.join(READERS)}); "
            f"found {', '.join(extensions) if extensions else 'no files at all'}"
        )
    return sorted(known, key=lambda pair: pair[1])


def _decode(raw: bytes, path: Path, offset: int) -> str:
    skip = len(codecs.BOM_UTF8) if offset == 0 and raw.startswith(codecs.BOM_UTF8) else 0
    try:
        return raw[skip:].decode("utf-8")
    except UnicodeDecodeError as error:
        at = offset + skip + error.start
        raise DataError(
            f"{path} is not UTF-8: byte {raw[skip + error.start]:#04x} at offset {at}; "
            "convert it first, for example with iconv -t UTF-8"
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
        raise DataError(_no_column(where, column, list(row)))
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


def _no_column(where: str, column: str, names: list[str]) -> str:
    return (
        f"{where}: no column {column!r}; columns are {', '.join(names) or '(none)'}: "
        "choose one with data.source.text_column=..."
    )
