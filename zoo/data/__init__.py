"""Text to batches: sources of documents, tokenizers, token stores on disk and the order in which they are read.

Lightning's data module is in :mod:`zoo.data.datamodule`, since importing Lightning takes seconds.
"""

from zoo.data.documents import DataError, Document, Source
from zoo.data.sampler import BatchPlan, TrainBatches, ValidationBatches, permute
from zoo.data.sources.hub import HubSource
from zoo.data.sources.local import StdlibSource, TextSource
from zoo.data.store.token_store import TokenStore
from zoo.data.token_bytes import token_byte_lengths, vocabulary_size
from zoo.data.tokenizers import (
    build_tokenizer,
    encode_batch,
    load_tokenizer,
    save_tokenizer,
    tokenizer_fingerprint,
    tokens_with,
)

__all__ = [
    "BatchPlan",
    "DataError",
    "Document",
    "HubSource",
    "Source",
    "StdlibSource",
    "TextSource",
    "TokenStore",
    "TrainBatches",
    "ValidationBatches",
    "build_tokenizer",
    "encode_batch",
    "load_tokenizer",
    "permute",
    "save_tokenizer",
    "token_byte_lengths",
    "tokenizer_fingerprint",
    "tokens_with",
    "vocabulary_size",
]
