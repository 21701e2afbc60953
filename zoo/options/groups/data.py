"""Options of the groups data and tokenizer; configs/data, configs/tokenizer."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from annotated_types import Ge, Le
from pydantic import field_validator, model_validator
from typing_extensions import Self

from zoo.config import ConfigError
from zoo.data.recall.options import RecallOptions
from zoo.options.groups.entries import entry_model
from zoo.registry import SOURCES
from zoo.schema.base import Flag, Options, PathText, Positive, Text, Whole, option

LONGEST = 2**40  # of sequences, and more


class DataOptions(Options):
    """Text and how it is cut into sequences."""

    name: Text = option("name of the data set, also of the run's folder")
    length: Annotated[Whole, Ge(1), Le(LONGEST)] = option("input tokens of a sequence")
    isolate_documents: Flag = option("whether nothing crosses from one document into the next inside a sequence")
    num_workers: Annotated[Whole, Ge(0), Le(1024)] = option("processes that read batches, beside each training process")
    path: PathText | None = option("local text or a local copy of the data set, for sources that have one")
    verify: Flag = option(
        "whether all of a token store is compared with its checksums when it is opened, not only sizes and some blocks",
        default=False,
    )
    cache_dir: PathText = option("folder for tokenizers, token stores and downloads")
    val_tokens: Positive | None = option("tokens to validate on, the first of the split; null: all")
    recall: RecallOptions | None = option(
        "recall samples among the sequences, with data/recall=mix or mqar; null: none", default=None
    )
    source: dict[str, Any] = option("kind of the text's source, and its options")

    @field_validator("source")
    @classmethod
    def _check_source(cls, source: dict[str, Any]) -> dict[str, Any]:
        options = {key: value for key, value in source.items() if key != "kind"}
        read = source_model(source.get("kind")).read(options, "data.source")
        return {"kind": source["kind"], **read.model_dump(exclude_unset=True)}

    @model_validator(mode="after")
    def _check_path(self) -> Self:
        if self.path is not None and "path" not in self.source:
            raise ConfigError(
                f"data.path={self.path}: data={self.name} reads no path; choose data=text for local files, or a data "
                "set with a local copy."
            )
        return self


def source_model(kind: Any) -> type[Options]:
    """Returns the options model of a registered source.

    Raises:
        ConfigError: if there is none.
    """
    return entry_model(SOURCES, kind, "data.source.kind")


class BytesOptions(Options):
    """256 bytes and one end-of-text token."""

    kind: Literal["bytes"] = option("256 bytes and one end-of-text token")


class BPEOptions(Options):
    """Byte-level BPE trained on the train split and kept in the cache."""

    kind: Literal["bpe"] = option("byte-level BPE trained on the train split and kept in the cache")
    vocab_size: Annotated[Whole, Ge(257), Le(10_000_000)] = option("entries of the vocabulary")
    train_bytes: Positive = option("bytes of text that are learned from, at most")


class PretrainedOptions(Options):
    """Any fast tokenizer with an end-of-text token."""

    kind: Literal["pretrained"] = option("any fast tokenizer with an end-of-text token")
    id: PathText = option("Hub id or local folder")
    revision: Text | None = option("revision of the Hub's repository; null: the latest")


TokenizerOptions = BytesOptions | BPEOptions | PretrainedOptions
