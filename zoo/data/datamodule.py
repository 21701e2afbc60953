"""The data side of a run: tokenizer, token stores and loaders behind Lightning's data module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import lightning
import numpy as np
import torch
from torch.utils.data import DataLoader

from zoo.data.documents import DataError, Source, expand
from zoo.data.sampler import BatchPlan, TrainBatches, ValidationBatches
from zoo.data.store import TokenStore
from zoo.data.tokenizers import build_tokenizer, token_byte_lengths, vocabulary_size

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class LanguageData(lightning.LightningDataModule):
    """Text of a source as batches of tokens for training and validation.

    length: input tokens per sequence; a sequence has one more, its last target.
    isolate_documents: batches carry document ids, so that nothing crosses from one document into the next.
    batch_size: sequences per optimizer step, over all devices; micro_batch_size: sequences per device and forward
    pass (None: batch_size // world). val_tokens: validate on the first so many targets only.
    tokenizer: a ready one, from a run folder, in place of building one from `tokenizer_spec`.

    prepare() fills `tokenizer`, `vocab_size`, `token_bytes` (vocab_size,) int64, `stores` and `fingerprint`, by split.
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
    ) -> None:
        super().__init__()
        self.source, self.tokenizer_spec, self._given_tokenizer = source, tokenizer_spec, tokenizer
        self.length, self.isolate_documents, self.val_tokens = length, isolate_documents, val_tokens
        self.batch_size, self.micro_batch_size, self.num_workers = batch_size, micro_batch_size, num_workers
        self.cache_dir, self.seed = expand(cache_dir), seed
        self.stores: dict[str, TokenStore] = {}
        self._check_options()

    @property
    def fingerprint(self) -> dict[str, str]:
        """Content address of every split opened so far."""
        return {split: store.key for split, store in self.stores.items()}

    def prepare(self) -> None:
        """Builds or opens the tokenizer and the stores for train and validation; a second call does nothing."""
        if not hasattr(self, "tokenizer"):
            tokenizer = self._given_tokenizer or build_tokenizer(self.tokenizer_spec, self.source, self.cache_dir)
            self.token_bytes = token_byte_lengths(tokenizer)
            self.vocab_size = vocabulary_size(tokenizer)
            self.tokenizer = tokenizer
        for split in ("train", "validation"):
            self.store(split)

    def store(self, split: str) -> TokenStore:
        """The token store of a split, built if need be."""
        if not hasattr(self, "tokenizer"):
            self.prepare()
        if split not in self.stores:
            self.stores[split] = TokenStore.open_or_build(self.source, split, self.tokenizer, self.cache_dir)
        return self.stores[split]

    def setup(self, stage: str) -> None:
        """Lightning's hook on every process: the stores must be open on each."""
        self.prepare()

    def micro_batch(self, world: int) -> int:
        """Sequences per device and forward pass."""
        if self.micro_batch_size is not None:
            return self.micro_batch_size
        if self.batch_size % world:
            raise DataError(f"batch_size={self.batch_size} is not divisible by {world} devices")
        return self.batch_size // world

    def accumulate(self, world: int) -> int:
        """Micro batches per optimizer step on each of `world` devices."""
        together = self.micro_batch(world) * world
        if self.batch_size % together:
            raise DataError(
                f"batch_size={self.batch_size} is not divisible by micro_batch_size={self.micro_batch(world)} x "
                f"{world} device{'s' * (world > 1)} = {together}: change one of them"
            )
        return self.batch_size // together

    def train_dataloader(self) -> DataLoader:
        """Endless micro batches from the trainer's current optimizer step on, which is how a run resumes."""
        step, rank, world = self._place()
        plan = BatchPlan(self.store("train").num_tokens, self.length, self.batch_size, self.seed)
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
            )
        )

    def val_dataloader(self) -> DataLoader:
        """Masked windows that cover the validation split once."""
        _, rank, world = self._place()
        return self._loader(
            ValidationBatches(
                self.store("validation"),
                self.length,
                rank=rank,
                world=world,
                micro_batch=self.micro_batch(world),
                max_tokens=self.val_tokens,
                isolate_documents=self.isolate_documents,
            )
        )

    def _place(self) -> tuple[int, int, int]:
        if self.trainer is None:
            return 0, 0, 1
        return self.trainer.global_step, self.trainer.global_rank, self.trainer.world_size

    def _loader(self, batches: TrainBatches | ValidationBatches) -> DataLoader:
        return DataLoader(
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
