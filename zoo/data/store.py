"""The token store: a split as one array of ids on disk, addressed by what it was made from."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import sys
import time
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.data.atomic import build_once
from zoo.data.documents import DataError, Document, Source, expand
from zoo.data.tokenizers import encode_batch, tokenizer_fingerprint, vocabulary_size

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

log = logging.getLogger(__name__)

FORMAT = 1
FILES = ("tokens.bin", "offsets.npy", "counts.npy", "names.json")
BATCH_CHARACTERS = 4_000_000
BATCH_DOCUMENTS = 4096


class TokenStore:
    """Documents of one split as ids, memory-mapped and read-only; each is stored as [eos] and its tokens.

    key: content address; folder: where it lies.
    tokens: (num_tokens,) uint16 or uint32; offsets: (documents + 1,) int64, where each document's eos stands;
    counts: (documents, 3) int64, of the original text: UTF-8 bytes, words (separated by white space), characters.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        meta = _read_meta(self.folder)
        self.key: str = meta["key"]
        self.eos: int = meta["eos"]
        self.tokens: np.ndarray = np.memmap(self.folder / "tokens.bin", dtype=meta["dtype"], mode="r")
        self.offsets = np.load(self.folder / "offsets.npy")
        self.counts = np.load(self.folder / "counts.npy")
        self.offsets.setflags(write=False)
        self.counts.setflags(write=False)

    @classmethod
    def open_or_build(
        cls,
        source: Source,
        split: str,
        tokenizer: PreTrainedTokenizerFast,
        cache_dir: str | Path,
        progress: bool = True,
    ) -> TokenStore:
        """The verified store of a split under `cache_dir`, built first if it is missing or damaged."""
        recipe = json.dumps([FORMAT, split, source.fingerprint(split), tokenizer_fingerprint(tokenizer)])
        key = hashlib.sha256(recipe.encode()).hexdigest()[:32]
        folder = expand(cache_dir) / "tokens" / key
        if not _intact(folder, quiet=True):

            def build(unfinished: Path) -> None:
                _build(source, split, tokenizer, key, unfinished, progress)

            try:
                build_once(folder, lambda: _intact(folder), build)
            except OSError as error:
                raise DataError(f"the token store {folder} could not be written: {error}") from error
        return cls(folder)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.folder,)

    @property
    def num_tokens(self) -> int:
        """Tokens of the whole split, the documents' eos included."""
        return len(self.tokens)

    @cached_property
    def names(self) -> list[str]:
        """The documents' names, in order."""
        return json.loads((self.folder / "names.json").read_text(encoding="utf-8"))

    def document(self, index: int) -> np.ndarray:
        """Ids of one document, without the leading eos."""
        if not 0 <= index < len(self):
            raise IndexError(f"document {index} of {len(self)}")
        return self.tokens[self.offsets[index] + 1 : self.offsets[index + 1]]

    def documents_at(self, start: int, stop: int) -> list[str]:
        """Names of the documents that have tokens (eos included) in start..stop-1."""
        if not 0 <= start < stop <= self.num_tokens:
            raise IndexError(f"tokens {start}..{stop} of {self.num_tokens}")
        first, last = np.searchsorted(self.offsets, [start, stop - 1], side="right") - 1
        return self.names[first : last + 1]


def _build(
    source: Source, split: str, tokenizer: PreTrainedTokenizerFast, key: str, folder: Path, progress: bool
) -> None:
    writer = _Writer(tokenizer, folder)
    try:
        with _progress(f"tokenising {source.name} ({split})", writer, progress) as advance:
            for batch in _batches(source.documents(split)):
                writer.add(batch)
                advance()
        if not writer.names:
            raise DataError(f"the {split!r} split of {source.name} has no documents: there is nothing to tokenise")
        writer.finish(key)
    except OSError as error:
        raise _no_space(error, folder, writer, source.documents(split)) from error
    finally:
        writer.close()


class _Writer:
    """Writes the files of a store batch by batch; only offsets, counts and names stay in memory."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
        self.tokenizer, self.folder = tokenizer, folder
        self.eos: int = tokenizer.eos_token_id
        self.dtype = np.dtype(np.uint16 if vocabulary_size(tokenizer) <= 2**16 else np.uint32)
        self.offsets, self.counts, self.names = array("q", [0]), array("q"), list[str]()
        self.num_bytes = 0
        self._file = (folder / "tokens.bin").open("wb")

    def add(self, documents: list[Document]) -> None:
        texts = [document.text for document in documents]
        for document, ids in zip(documents, encode_batch(self.tokenizer, texts)):
            self._file.write(np.concatenate([[self.eos], ids]).astype(self.dtype).tobytes())
            size = len(document.text.encode())
            self.num_bytes += size
            self.offsets.append(self.offsets[-1] + 1 + len(ids))
            self.counts.extend((size, len(document.text.split()), len(document.text)))
            self.names.append(document.name)

    def finish(self, key: str) -> None:
        self._file.close()
        np.save(self.folder / "offsets.npy", np.array(self.offsets, dtype=np.int64))
        np.save(self.folder / "counts.npy", np.array(self.counts, dtype=np.int64).reshape(-1, 3))
        (self.folder / "names.json").write_text(json.dumps(self.names), encoding="utf-8")
        files = {name: _describe(self.folder / name) for name in FILES}
        meta = {"format": FORMAT, "key": key, "eos": self.eos, "dtype": self.dtype.name, "files": files}
        meta["sha256"] = _checksum(meta)
        (self.folder / "meta.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")

    def close(self) -> None:
        try:
            self._file.close()
        except OSError:  # what is still buffered cannot be written either; the folder is on its way out
            log.debug("the unfinished store in %s could not be flushed", self.folder)


def _batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if size >= BATCH_CHARACTERS or len(batch) >= BATCH_DOCUMENTS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


@contextmanager
def _progress(title: str, writer: _Writer, wanted: bool) -> Iterator[Any]:
    begun = time.monotonic()
    if wanted and sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(title)
            yield lambda: bar.update(task, description=f"{title}: {_amount(writer)}")
    else:
        if wanted:
            print(title, file=sys.stderr, flush=True)
        yield lambda: None
    if wanted:
        print(f"{title}: {_amount(writer)} in {time.monotonic() - begun:.1f} s", file=sys.stderr, flush=True)


def _amount(writer: _Writer) -> str:
    return f"{len(writer.names):,} documents, {writer.num_bytes:,} bytes, {writer.offsets[-1]:,} tokens"


def _no_space(error: OSError, folder: Path, writer: _Writer, documents: Iterator[Document]) -> DataError:
    total = sum(len(document.text.encode()) for document in documents)
    tokens_per_byte = writer.offsets[-1] / writer.num_bytes if writer.num_bytes else 1.0
    needed = int(total * tokens_per_byte * writer.dtype.itemsize * 1.05) + 2**20
    free = shutil.disk_usage(folder).free
    return DataError(
        f"writing the token store in {folder.parent} failed ({error.strerror or error}): about {needed / 2**20:,.0f} "
        f"MiB are needed and {free / 2**20:,.0f} MiB are free; free some space, or set data.cache_dir or ZOO_CACHE to "
        "a folder on a larger disk"
    )


def _describe(path: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**22):
            digest.update(chunk)
    return {"size": os.path.getsize(path), "sha256": digest.hexdigest()}


def _checksum(meta: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def _read_meta(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "meta.json").read_text(encoding="utf-8"))


def _intact(folder: Path, quiet: bool = False) -> bool:
    if not folder.is_dir():
        return False
    damage = _damage(folder)
    if damage and not quiet:
        log.warning("the token store %s is damaged (%s) and is built again", folder, damage)
    return not damage


def _damage(folder: Path) -> str | None:
    try:
        meta = _read_meta(folder)
        expected = meta.pop("sha256")
        if expected != _checksum(meta) or meta["format"] != FORMAT or meta["key"] != folder.name:
            return "meta.json does not match its checksum"
        for name in FILES:
            size = os.path.getsize(folder / name)
            if size != meta["files"][name]["size"]:
                return f"{name} has {size} bytes, expected {meta['files'][name]['size']}"
        for name in FILES:
            if _describe(folder / name) != meta["files"][name]:
                return f"{name} does not match its checksum"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    return None
