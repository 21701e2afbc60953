"""Writer of token stores: documents are tokenized and written batch by batch, so that memory stays small."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from zoo.data.documents import DataError, Document, Source
from zoo.data.store.store_files import FILES, write_meta
from zoo.data.token_bytes import vocabulary_size
from zoo.data.tokenizers import encode_batch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

BATCH_CHARACTERS = 4_000_000
BATCH_DOCUMENTS = 4096


def build_store(
    source: Source, split: str, tokenizer: PreTrainedTokenizerFast, key: str, folder: Path, progress: bool
) -> None:
    """Writes the store of a split into an empty folder.

    Raises:
        DataError: if the split has no documents or the disk is full.
    """
    title = f"tokenizing {source.name} ({split})"
    dtype = np.dtype(np.uint16 if vocabulary_size(tokenizer) <= 2**16 else np.uint32)
    writer = StoreWriter(folder, tokenizer.eos_token_id, dtype)
    try:
        with writer, _progress(title, writer, progress) as advance:
            for batch in _batches(source.documents(split)):
                ids = encode_batch(tokenizer, [document.text for document in batch])
                for document, tokens in zip(batch, ids):
                    writer.add(document, tokens)
                advance()
        if not writer.documents:
            raise DataError(f"the {split!r} split of {source.name} has no documents: there is nothing to tokenize")
        write_meta(folder, key, writer.eos, writer.dtype.name)
    except OSError as error:
        raise _no_space(error, folder, writer, source.documents(split)) from error


class StoreWriter:
    """Appends documents to the files of a store; nothing stays in memory.

    Args:
        folder: an empty folder.
        eos: id that is put before each document.
        dtype: dtype of the ids.
    """

    def __init__(self, folder: Path, eos: int, dtype: np.dtype) -> None:
        self.folder, self.eos, self.dtype = folder, eos, dtype
        self.documents = self.tokens = self.bytes = self._name_bytes = 0
        self._stack = ExitStack()

    def __enter__(self) -> StoreWriter:
        self._files = {name: self._stack.enter_context((self.folder / name).open("wb")) for name in FILES}
        self._write("offsets.bin", 0)
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def add(self, document: Document, ids: np.ndarray) -> None:
        """Appends one document: its ids (tokens,), the counts of its text, and its name."""
        text, name = document.text, document.name.encode("utf-8", "surrogatepass") + b"\n"
        size = len(text.encode())
        self._files["tokens.bin"].write(np.concatenate([[self.eos], ids]).astype(self.dtype).tobytes())
        self.documents += 1
        self.bytes += size
        self.tokens += 1 + len(ids)
        self._name_bytes += len(name)
        self._write("offsets.bin", self.tokens)
        self._write("counts.bin", size, len(text.split()), len(text))
        self._files["names.bin"].write(name)
        self._write("name_ends.bin", self._name_bytes)

    def _write(self, name: str, *numbers: int) -> None:
        self._files[name].write(b"".join(number.to_bytes(8, "little") for number in numbers))  # INDEX_DTYPE

    def amount(self) -> str:
        """Describes how much has been written."""
        return f"{self.documents:,} documents, {self.bytes:,} bytes, {self.tokens:,} tokens"


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
def _progress(title: str, writer: StoreWriter, wanted: bool) -> Iterator[Callable[[], None]]:
    begun = time.monotonic()
    if wanted and sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(title)
            yield lambda: bar.update(task, description=f"{title}: {writer.amount()}")
    else:
        if wanted:
            print(title, file=sys.stderr, flush=True)
        yield lambda: None
    if wanted:
        print(f"{title}: {writer.amount()} in {time.monotonic() - begun:.1f} s", file=sys.stderr, flush=True)


def _no_space(error: OSError, folder: Path, writer: StoreWriter, documents: Iterator[Document]) -> DataError:
    total = sum(len(document.text.encode()) for document in documents)
    tokens_per_byte = writer.tokens / writer.bytes if writer.bytes else 1.0
    needed = int(total * tokens_per_byte * writer.dtype.itemsize * 1.05) + 2**20
    free = shutil.disk_usage(folder).free
    return DataError(
        f"writing the token store in {folder.parent} failed ({error.strerror or error}): about {needed / 2**20:,.0f} "
        f"MiB are needed and {free / 2**20:,.0f} MiB are free; free some space, or set data.cache_dir or ZOO_CACHE to "
        "a folder on a larger disk"
    )
