"""Token store: a split as one array of ids on disk, addressed by what it was made from."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from zoo.data.atomic import build_once
from zoo.data.documents import DataError, Source, expand
from zoo.data.fingerprints import known_fingerprint, source_stamp
from zoo.data.store.store_files import FORMAT, INDEX_DTYPE, damage, read_meta
from zoo.data.store.store_writer import build_store
from zoo.data.tokenizers import tokenizer_fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

log = logging.getLogger(__name__)

RECIPE = 1  # what a key is made of; the layout of the files has a number of its own, so that runs keep their keys


class TokenStore:
    """Documents of one split as ids, memory-mapped and read-only; each is stored as [eos] and its tokens.

    Opening a store reads its metadata alone: arrays and names are mapped, not copied.

    Attributes:
        key: content address.
        folder: folder of the store.
        tokens: (num_tokens,) uint16 or uint32.
        offsets: (documents + 1,) int64, the position of each document's eos.
        counts: (documents, 3) int64, of the original text: UTF-8 bytes, words (separated by white space), characters.
        names: the documents' names, in order; a slice of them is a list.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        meta = read_meta(self.folder)
        self.key: str = meta["key"]
        self.eos: int = meta["eos"]
        self.tokens = _map(self.folder / "tokens.bin", meta["dtype"])
        self.offsets = _map(self.folder / "offsets.bin", INDEX_DTYPE)
        self.counts = _map(self.folder / "counts.bin", INDEX_DTYPE).reshape(-1, 3)

    @classmethod
    def open_or_build(
        cls,
        source: Source,
        split: str,
        tokenizer: PreTrainedTokenizerFast,
        cache_dir: str | Path,
        progress: bool = True,
        verify: bool = False,
    ) -> TokenStore:
        """Opens the store of a split under `cache_dir`, building it first if it is missing or damaged.

        Args:
            source: source of the documents.
            split: name of the split.
            tokenizer: the tokenizer.
            cache_dir: folder of token stores.
            progress: show a progress bar while it is built.
            verify: read all of it and compare its checksums; otherwise sizes and some blocks of each file.
        """
        stamp = source_stamp(source)
        key = store_key(source, split, tokenizer, cache_dir)
        folder = expand(cache_dir) / "tokens" / key
        if not _intact(folder, verify, quiet=True):

            def build(unfinished: Path) -> None:
                build_store(source, split, tokenizer, key, unfinished, progress)
                if source_stamp(source) != stamp:
                    raise DataError(f"the files of {source.name} changed while they were read: start again")

            build_once(folder, lambda: _intact(folder, verify), build)
        return cls(folder)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.folder,)

    @property
    def num_tokens(self) -> int:
        """Number of tokens of the split, the documents' eos included."""
        return len(self.tokens)

    @cached_property
    def names(self) -> Names:
        """The documents' names, in order."""
        return Names(_map(self.folder / "names.bin", "u1"), _map(self.folder / "name_ends.bin", INDEX_DTYPE))

    def document(self, index: int) -> np.ndarray:
        """Returns the ids of one document, without the leading eos."""
        if not 0 <= index < len(self):
            raise IndexError(f"document {index} of {len(self)}")
        return self.tokens[self.offsets[index] + 1 : self.offsets[index + 1]]

    def documents_at(self, start: int, stop: int) -> list[str]:
        """Returns the names of the documents that have tokens (eos included) in start..stop-1."""
        if not 0 <= start < stop <= self.num_tokens:
            raise IndexError(f"tokens {start}..{stop} of {self.num_tokens}")
        first, last = np.searchsorted(self.offsets, [start, stop - 1], side="right") - 1
        return self.names[int(first) : int(last) + 1]


def store_key(source: Source, split: str, tokenizer: PreTrainedTokenizerFast, cache_dir: str | Path) -> str:
    """Returns the content address of the store of a split, which need not be built."""
    recipe = [RECIPE, split, known_fingerprint(source, split, cache_dir), tokenizer_fingerprint(tokenizer)]
    return hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:32]


class Names(Sequence[str]):
    """Sequence of document names, decoded on access.

    Args:
        raw: (bytes,) uint8, the names in UTF-8, each followed by a line feed.
        ends: (documents,) int64, where the next name starts.
    """

    def __init__(self, raw: np.ndarray, ends: np.ndarray) -> None:
        self._raw, self._ends = raw, ends

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        numbers = range(len(self))[index]
        return self._name(numbers) if isinstance(numbers, int) else [self._name(number) for number in numbers]

    def __iter__(self) -> Iterator[str]:
        return (self._name(number) for number in range(len(self)))

    def _name(self, number: int) -> str:
        start = self._ends[number - 1] if number else 0
        return self._raw[start : self._ends[number] - 1].tobytes().decode("utf-8", "surrogatepass")


def _map(path: Path, dtype: str) -> np.ndarray:
    return np.memmap(path, dtype=dtype, mode="r").view(np.ndarray)


def _intact(folder: Path, verify: bool, quiet: bool = False) -> bool:
    if not folder.is_dir():
        return False
    found = damage(folder, verify)
    if found and not quiet:
        log.warning("the token store %s %s and is built again", folder, found)
    return not found


__all__ = ["FORMAT", "Names", "TokenStore"]
