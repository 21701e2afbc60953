"""Source for data sets of the Hugging Face Hub, and for local folders of the same layout."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from zoo.data.atomic import build_once
from zoo.data.documents import (
    CACHE,
    SPLITS,
    DataError,
    Document,
    Named,
    check_split,
    digest_documents,
    expand,
    split_index,
    text_hash,
)
from zoo.data.fingerprints import remember, stamp_files
from zoo.data.sources.plain_names import plain_cache, plain_folder
from zoo.data.sources.wikitext import join_articles
from zoo.paths import PathName
from zoo.registry import SOURCES

JOINS = ("none", "wikitext_articles")


@SOURCES.register("hub")
class HubSource:
    """Data set by its Hub id, or a local folder of the same layout if `path` is given.

    Code that comes with a data set is never run.

    Args:
        id: id on the Hub.
        config: name of the configuration; None for the default.
        revision: revision on the Hub; None for the latest.
        text_column: column of the text.
        splits: the data set's own name of each of train, validation and test; None: it has no such split, and
            `validation_fraction` of the rows of its train split, chosen by the hash of their text, serve as validation,
            and as many others as test.
        path: local folder in place of the Hub.
        join: "wikitext_articles" turns the lines of WikiText back into articles.
        validation_fraction: share of the train split for each split that the data set does not have.
        streaming: fetch only the head of each split, once; it is stored under cache_dir and read from there afterwards.
        max_documents: use only so many documents of each split, in the order of the data set, before anything is
            divided.
        max_bytes: use only so many bytes of each split, likewise.
        cache_dir: folder of what is fetched.
    """

    def __init__(
        self,
        id: str,
        config: str | None = None,
        revision: str | None = None,
        text_column: str = "text",
        splits: Mapping[str, str | None] | None = None,
        path: PathName | None = None,
        join: str = "none",
        validation_fraction: float = 0.0,
        streaming: bool = False,
        max_documents: int | None = None,
        max_bytes: int | None = None,
        cache_dir: PathName = CACHE,
    ) -> None:
        self.name = id if config is None else f"{id}/{config}"
        self.id, self.config, self.revision, self.path = id, config, revision, path
        self.text_column, self.join, self.streaming = text_column, join, streaming
        self.splits: dict[str, str | None] = dict(splits or {split: split for split in SPLITS})
        self.validation_fraction = validation_fraction
        self.max_documents, self.max_bytes = max_documents, max_bytes
        self.cache_dir = expand(cache_dir)

    def documents(self, split: str) -> Iterator[Document]:
        """Yields the documents of one split in the order of the data set; rows without text are left out."""
        check_split(split)
        self._check_options()
        own = self.splits.get(split)
        if own is not None:
            divided = split == "train" and any(self.splits.get(other) is None for other in SPLITS[1:])
            fraction = self.validation_fraction if divided else 0.0
        elif self.validation_fraction > 0 and self.splits.get("train"):
            own, fraction = self.splits["train"], self.validation_fraction
        else:
            raise DataError(
                f"{self.name} has no {split!r} split here: name it with ",
                Named(f"splits.{split}", "{}=..., or set "),
                Named("validation_fraction", "{} to set some of train aside"),
            )
        for document in self._head(str(own)):
            if not fraction or self._belongs(document, split, fraction):
                yield document

    def fingerprint(self, split: str) -> str:
        """Returns the SHA-256 over the names and texts of the split, cached for as long as the files do not change."""
        check_split(split)
        self._check_options()
        options = ["hub", split, self.splits, self._recipe(), self.validation_fraction]
        return remember(
            self.cache_dir,
            split,
            lambda: stamp_files(options, ((file, file.name) for file in self._files(split))),
            lambda: digest_documents(self.documents(split)),
        )

    def check(self) -> None:
        """Checks that the options fit together, and that `path` is a folder; nothing is read.

        Raises:
            DataError: if not.
        """
        self._check_options()
        if self.path and not expand(str(self.path)).is_dir():
            raise DataError(
                Named("path"),
                f"={self.path}: expected a folder with the layout of the Hub data set {self.id}; "
                "for other local text choose data=text",
            )

    def _check_options(self) -> None:
        if self.join not in JOINS:
            raise DataError(f"join={self.join!r}: expected one of {', '.join(JOINS)}")
        if not 0 <= self.validation_fraction < 0.5:
            raise DataError(f"validation_fraction={self.validation_fraction}: expected a number from 0 to below 0.5")
        if self._is_snapshot and self.max_documents is None and self.max_bytes is None:
            raise DataError(
                f"{self.name} is streamed without a budget: set ",
                Named("max_bytes", "{} or "),
                Named("max_documents"),
            )

    @property
    def _is_snapshot(self) -> bool:
        return self.streaming and self.path is None

    @staticmethod
    def _belongs(document: Document, split: str, fraction: float) -> bool:
        return SPLITS[split_index(text_hash(document.text), (1 - 2 * fraction, fraction, fraction))] == split

    def _recipe(self) -> list[Any]:
        return [self.text_column, self.join, self.max_documents, self.max_bytes]

    def _files(self, split: str) -> list[Path]:
        if self._is_snapshot:
            return [self._snapshot_file(str(self.splits.get(split) or self.splits.get("train")))]
        return [Path(entry["filename"]) for data in self.splits_by_name.values() for entry in data.cache_files]

    def _head(self, own: str) -> Iterator[Document]:
        return self._snapshot(own) if self._is_snapshot else self._budgeted(own)

    def _budgeted(self, own: str) -> Iterator[Document]:
        rows = self._rows(own)
        documents: Iterable[Document]
        if self.join == "wikitext_articles":
            documents = join_articles(rows, own)
        else:
            documents = (Document(f"{own}/{number}", text) for number, text in enumerate(rows) if text)
        size = 0
        for count, document in enumerate(documents, 1):
            size += len(document.text.encode())
            yield document
            if count == self.max_documents or (self.max_bytes is not None and size >= self.max_bytes):
                return

    def _rows(self, own: str) -> Iterator[str]:
        if own not in self.splits_by_name:
            raise DataError(
                *self.where,
                f" has no split {own!r}; it has {', '.join(self.splits_by_name)}: name the one to use, as in ",
                Named("splits.test", "{}=NAME"),
            )
        data = self.splits_by_name[own]
        if data.column_names is not None:
            if self.text_column not in data.column_names:
                raise DataError(
                    *self.where,
                    f" has no column {self.text_column!r}; it has {', '.join(data.column_names)}: ",
                    Named("text_column", "choose one with {}=...", "rename the one to be read"),
                )
            data = data.select_columns([self.text_column])
        for batch in data.iter(batch_size=1000):
            for text in batch[self.text_column]:
                if text is not None and not isinstance(text, str):
                    raise DataError(*self.where, f": column {self.text_column!r} holds {type(text).__name__}, not text")
                yield text or ""

    @property
    def where(self) -> tuple[str | Named, ...]:
        """Name of the data set in messages, as parts of a :class:`zoo.data.documents.DataError`."""
        return (Named("path"), f"={self.path}") if self.path else (self.name,)

    @cached_property
    def splits_by_name(self) -> Mapping[str, Any]:
        """Rows of every split of the data set itself, by the split's own name."""
        from datasets import disable_progress_bars, load_dataset

        if not sys.stderr.isatty():  # where nobody watches, bars only part the lines that are told
            disable_progress_bars()
        if self.path:
            return self._local()
        try:
            return load_dataset(self.id, self.config, revision=self.revision, streaming=self.streaming)
        except Exception as error:  # datasets raises ConnectionError, ValueError, RuntimeError and its own kinds
            raise DataError(
                f"the data set {self.name} could not be loaded ({_first_line(error)}): ",
                Named("path", "check the network and the name, or point {} at a local folder with a copy of it"),
            ) from error

    def _local(self) -> Mapping[str, Any]:
        from datasets import get_dataset_config_names, load_dataset

        self.check()
        folder = expand(str(self.path))
        try:
            place = str(plain_folder(folder, self.cache_dir))
            config = self._local_config(get_dataset_config_names(place))
            return load_dataset(place, config, cache_dir=str(plain_cache(self.cache_dir / "datasets")))
        except DataError:
            raise
        except Exception as error:
            raise DataError(
                Named("path"),
                f"={self.path} could not be read ({_first_line(error)}): expected a README.md with a list of "
                "configs, or parquet or jsonl files named after their split, such as train.jsonl",
            ) from error

    def _local_config(self, available: list[str]) -> str:
        if self.config is None or self.config in available:
            return self.config or (available[0] if len(available) == 1 else "default")
        if len(available) != 1:
            raise DataError(
                Named("path"),
                f"={self.path} has no config {self.config!r}; it has {', '.join(available)}: ",
                Named("config", "choose one with {}=..."),
            )
        print(f"warning: {self.path} has no config {self.config!r}; using {available[0]!r}", file=sys.stderr)
        return available[0]

    def _snapshot_file(self, own: str) -> Path:
        recipe = json.dumps([1, self.id, self.config, self.revision, own, self._recipe()])
        folder = self.cache_dir / "snapshots" / hashlib.sha256(recipe.encode()).hexdigest()[:32]
        if not folder.is_dir():
            build_once(folder, folder.is_dir, lambda unfinished: self._save(own, unfinished / "documents.parquet"))
        return folder / "documents.parquet"

    def _snapshot(self, own: str) -> Iterator[Document]:
        import pyarrow.parquet as pq

        with pq.ParquetFile(self._snapshot_file(own)) as table:
            for batch in table.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    yield Document(row["name"], row["text"])

    def _save(self, own: str, path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        print(f"fetching the head of {self.name}, split {own!r}", file=sys.stderr)
        schema = pa.schema([("name", pa.large_string()), ("text", pa.large_string())])
        with pq.ParquetWriter(path, schema, compression="zstd") as writer:
            rows: list[dict[str, str]] = []
            try:
                for document in self._budgeted(own):
                    rows.append({"name": document.name, "text": document.text})
                    if len(rows) == 1024:
                        writer.write_table(pa.Table.from_pylist(rows, schema=schema))
                        rows = []
            except DataError:
                raise
            except Exception as error:
                raise DataError(
                    f"the stream of {self.name} broke off ({_first_line(error)}): try again, ",
                    Named("path", "or point {} at a copy"),
                ) from error
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
