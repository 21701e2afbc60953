"""Data of a run: tokenizer, token stores and loaders behind Lightning's data module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import lightning
import numpy as np
import torch
from torch.utils.data import ConcatDataset, DataLoader, Dataset

from zoo.data.documents import DataError, Source, expand, source_notes
from zoo.data.recall.options import RecallOptions
from zoo.data.recall_data import RecallRows, RecallValidation
from zoo.data.sampler import BatchPlan, TrainBatches, ValidationBatches
from zoo.data.store.token_store import TokenStore
from zoo.data.token_bytes import token_byte_lengths, vocabulary_size
from zoo.data.tokenizers import build_tokenizer
from zoo.data.workers import SteadyLoader

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class LanguageData(lightning.LightningDataModule):
    """Text of a source as batches of tokens for training and validation.

    Args:
        source: source of the documents.
        tokenizer_spec: tokenizer to build, see :func:`zoo.data.tokenizers.build_tokenizer`.
        length: input tokens per sequence; a sequence has one more, its last target.
        isolate_documents: batches have document ids, so that nothing crosses from one document into the next.
        batch_size: sequences per optimizer step, over all devices.
        micro_batch_size: sequences per device and forward pass; None for ``batch_size // world``.
        num_workers: worker processes of each loader.
        cache_dir: folder of token stores, trained tokenizers and fingerprints.
        seed: seed of the order of sequences, and of recall samples.
        val_tokens: validate on the first so many targets only; None for all.
        tokenizer: an existing one, from a run folder, in place of building one from ``tokenizer_spec``.
        recall: options of recall samples among the training sequences; None for text alone.
        verify: compare all of a token store with its checksums when it is opened.

    Attributes:
        tokenizer: the tokenizer; it and the attributes below are set by :meth:`prepare`.
        vocab_size: number of tokens of the vocabulary.
        token_bytes: ``(vocab_size,)`` int64, UTF-8 bytes of each token.
        stores: token store of each split.
        recall_rows: rows of recall samples, or None.
    """

    tokenizer: PreTrainedTokenizerFast
    vocab_size: int
    token_bytes: np.ndarray

    def __init__(
        self,
        source: Source,
        tokenizer_spec: Mapping[str, Any],
        *,
        length: int = 512,
        isolate_documents: bool = False,
        batch_size: int,
        micro_batch_size: int | None = None,
        num_workers: int = 0,
        cache_dir: str,
        seed: int = 0,
        val_tokens: int | None = None,
        tokenizer: PreTrainedTokenizerFast | None = None,
        recall: RecallOptions | None = None,
        verify: bool = False,
    ) -> None:
        super().__init__()
        self.source, self.tokenizer_spec, self.given_tokenizer = source, tokenizer_spec, tokenizer
        self.length, self.isolate_documents, self.val_tokens = length, isolate_documents, val_tokens
        self.batch_size, self.micro_batch_size, self.num_workers = batch_size, micro_batch_size, num_workers
        self.cache_dir, self.seed, self.verify = expand(cache_dir), seed, verify
        self.stores: dict[str, TokenStore] = {}
        self.recall = recall
        self.recall_rows: RecallRows | None = None
        self._check_options()

    @property
    def fingerprint(self) -> dict[str, str]:
        """Content address of every split opened so far, and of the recall samples."""
        recall = {} if self.recall_rows is None else {"recall": self.recall_rows.fingerprint()}
        return {**{split: store.key for split, store in self.stores.items()}, **recall}

    @property
    def recall_names(self) -> list[str]:
        """Tasks of the recall samples, by their index in validation batches; empty for text alone."""
        return [] if self.recall_rows is None else self.recall_rows.names

    def describe(self) -> dict[str, Any]:
        """Returns metadata for the run folder: the files of each split, and the size of each open store."""
        stores = {
            split: {"key": store.key, "documents": len(store), "tokens": store.num_tokens}
            for split, store in self.stores.items()
        }
        return {"source": self.source.name, **source_notes(self.source), "stores": stores}

    def prepare(self) -> None:
        """Builds or opens the tokenizer and the stores for train and validation; a second call does nothing."""
        if not hasattr(self, "tokenizer"):
            tokenizer = self.given_tokenizer or build_tokenizer(self.tokenizer_spec, self.source, self.cache_dir)
            self.token_bytes = token_byte_lengths(tokenizer)
            self.vocab_size = vocabulary_size(tokenizer)
            self.tokenizer = tokenizer
        for split in ("train", "validation"):
            self.store(split)
        if self.recall is not None and self.recall_rows is None:
            self.recall_rows = RecallRows(self.recall, self.tokenizer, self.stores, self.length, self.seed)

    def store(self, split: str) -> TokenStore:
        """Returns the token store of a split, building it if need be."""
        if not hasattr(self, "tokenizer"):
            self.prepare()
        if split not in self.stores:
            self.stores[split] = TokenStore.open_or_build(
                self.source, split, self.tokenizer, self.cache_dir, verify=self.verify
            )
        return self.stores[split]

    def setup(self, stage: str) -> None:
        """Opens the stores on each process; a hook of Lightning."""
        self.prepare()

    def micro_batch(self, world: int) -> int:
        """Returns the number of sequences per device and forward pass."""
        if self.micro_batch_size is not None:
            return self.micro_batch_size
        if self.batch_size % world:
            raise DataError(f"batch_size={self.batch_size} is not divisible by {world} devices")
        return self.batch_size // world

    def accumulate(self, world: int) -> int:
        """Returns the number of micro batches per optimizer step on each of `world` devices."""
        together = self.micro_batch(world) * world
        if self.batch_size % together:
            raise DataError(
                f"batch_size={self.batch_size} is not divisible by micro_batch_size={self.micro_batch(world)} x "
                f"{world} device{'s' * (world > 1)} = {together}: change one of them"
            )
        return self.batch_size // together

    def train_dataloader(self) -> DataLoader:
        """Returns the loader of endless micro batches from the trainer's current optimizer step on."""
        step, rank, world = self._place()
        share = 0.0 if self.recall is None else self.recall.share
        plan = BatchPlan(self.store("train").num_tokens, self.length, self.batch_size, self.seed, share)
        return self._loader(
            TrainBatches(
                self.stores["train"],
                plan,
                start_step=step,
                accumulate=self.accumulate(world),
                rank=rank,
                world=world,
                micro_batch=self.micro_batch(world),
                isolate_documents=self.isolate_documents,
                recall=self.recall_rows,
            )
        )

    def val_dataloader(self) -> DataLoader:
        """Returns the loader of the validation batches.

        They are masked windows that cover the validation split once, if text is trained on, and then recall samples.
        """
        _, rank, world = self._place()
        micro_batch = self.micro_batch(world)
        batches: list[Dataset] = []
        if self.recall is None or self.recall.share < 1:
            store, isolated = self.store("validation"), self.isolate_documents
            batches.append(ValidationBatches(store, self.length, rank, world, micro_batch, self.val_tokens, isolated))
        if self.recall_rows is not None:
            batches.append(RecallValidation(self.recall_rows, rank, world, micro_batch))
        return self._loader(batches[0] if len(batches) == 1 else ConcatDataset(batches))

    def _place(self) -> tuple[int, int, int]:
        if self.trainer is None:
            return 0, 0, 1
        return self.trainer.global_step, self.trainer.global_rank, self.trainer.world_size

    def _loader(self, batches: Dataset) -> DataLoader:
        return SteadyLoader(
            batches,
            batch_size=None,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def _check_options(self) -> None:
        for name in ("length", "batch_size", "micro_batch_size", "val_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise DataError(f"{name}={value}: expected a positive number")
        if self.num_workers < 0:
            raise DataError(f"data.num_workers={self.num_workers}: expected 0 or more")
