"""Order of training data: which tokens make up which batch is a pure function of (seed, step), so resuming is exact.

Feistel networks as permutations of any domain: Black and Rogaway, "Ciphers with Arbitrary Finite Domains" (2002).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from zoo.data.documents import DataError
from zoo.data.store.token_store import TokenStore

if TYPE_CHECKING:
    from zoo.data.recall_data import RecallRows

ROUNDS = 8
WORD = 2**64 - 1


def mix(*values: int) -> int:
    """Hashes integers to 64 bits, the same on every machine and in every version."""
    state = np.uint64(0x243F6A8885A308D3)
    for value in values:
        state = _mix(np.array([state ^ np.uint64(value & WORD)], dtype=np.uint64))[0]
    return int(state)


def permute(index: np.ndarray, n: int, seed: int) -> np.ndarray:
    """Applies a keyed bijection of range(n), a Feistel network, to `index` (int64, any shape).

    The network permutes the next power of four; results outside range(n) are sent through it again.
    """
    index = np.asarray(index)
    if n < 1 or (index.size and (index.min() < 0 or index.max() >= n)):
        raise ValueError(f"indices must lie in range({n})")
    half = max(1, (int(n - 1).bit_length() + 1) // 2)
    keys = [np.uint64(mix(seed, number)) for number in range(ROUNDS)]
    result = _feistel(index.astype(np.uint64), half, keys)
    while (outside := result >= np.uint64(n)).any():
        result[outside] = _feistel(result[outside], half, keys)
    return result.astype(np.int64)


class BatchPlan:
    """Windows of length + 1 tokens in an order drawn anew for each epoch, with a fixed number per optimizer step.

    Each epoch also shifts the borders of the windows by an offset in [0, length). An epoch holds `windows` windows that
    overlap in one token (the last target of one is the first input of the next); the tokens outside of them, less than
    two windows, differ between epochs.

    With a recall_share, that share of all sequences, evenly spread, are not windows but rows of recall samples.

    Raises:
        DataError: if the store is too short for one window.
    """

    def __init__(self, num_tokens: int, length: int, global_batch: int, seed: int, recall_share: float = 0.0) -> None:
        if length < 1 or global_batch < 1:
            raise DataError(f"data.length={length} and batch_size={global_batch} must be positive")
        if num_tokens < length + 1:
            raise DataError(
                f"the training split has {num_tokens} tokens, too few for one window of data.length={length} tokens "
                "and its target: use a smaller data.length, or more text"
            )
        self.num_tokens, self.length, self.global_batch, self.seed = num_tokens, length, global_batch, seed
        self.recall_share = recall_share
        self.windows = max(1, (num_tokens - length) // length)

    def starts(self, step: int) -> np.ndarray:
        """Returns the first token of every sequence of an optimizer step, (global_batch,) int64; see :meth:`places`."""
        return self.places(np.arange(step * self.global_batch, (step + 1) * self.global_batch, dtype=np.int64))

    def places(self, numbers: np.ndarray) -> np.ndarray:
        """Returns the first token of sequences by number (int64, from 0 at step 0); -1 for a recall row."""
        before = np.floor(numbers * self.recall_share).astype(np.int64)  # recall rows among all earlier sequences
        recall = np.floor((numbers + 1) * self.recall_share).astype(np.int64) > before
        epoch, index = np.divmod(numbers - before, self.windows)
        places = np.full_like(numbers, -1)
        for number in np.unique(epoch[~recall]).tolist():
            here = (epoch == number) & ~recall
            order = permute(index[here], self.windows, mix(self.seed, number))
            places[here] = self.offset(number) + order * self.length
        return places

    def offset(self, epoch: int) -> int:
        """Returns where the first window of an epoch starts."""
        slack = self.num_tokens - 1 - self.windows * self.length
        return mix(self.seed, epoch, 1) % min(self.length, slack + 1)

    def micro(self, step: int, m: int, rank: int, world: int, b: int) -> np.ndarray:
        """Returns the numbers of the b sequences of micro batch `m` of `rank`; together they are all of the step."""
        first = (m * world + rank) * b
        if not (0 <= rank < world and m >= 0 and b > 0 and first + b <= self.global_batch):
            raise ValueError(f"no micro batch {m} of {b} for rank {rank} of {world} in a batch of {self.global_batch}")
        return np.arange(first, first + b, dtype=np.int64) + step * self.global_batch


class TrainBatches(IterableDataset):
    """Endless micro batches of one rank, from micro batch start_step * accumulate on.

    Each is a dict of tokens (b, L+1) int64, starts (windows,) int64, where the windows of the corpus begin, and, with
    isolate_documents, documents (b, L) int32. With recall rows, whose samples never see each other (a key has another
    value in each), documents are always there; and, of the targets, mask (b, L) bool: those of the
    corpus; targets (b, L) int64, weights (b, L) float32: of the loss, and answers (b, L) int64: as in RecallRows.
    To be loaded with DataLoader(batch_size=None): worker w of W makes items w, w + W, ..., which the loader puts back
    in order, so the stream does not depend on num_workers.
    """

    def __init__(
        self,
        store: TokenStore,
        plan: BatchPlan,
        start_step: int,
        accumulate: int,
        rank: int,
        world: int,
        micro_batch: int,
        isolate_documents: bool,
        recall: RecallRows | None = None,
    ) -> None:
        self.store, self.plan, self.start_step, self.accumulate = store, plan, start_step, accumulate
        self.rank, self.world, self.micro_batch = rank, world, micro_batch
        self.isolate_documents, self.recall = isolate_documents, recall

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        worker = get_worker_info()
        first, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        for item in itertools.count(self.start_step * self.accumulate + first, stride):
            step, m = divmod(item, self.accumulate)
            yield self._batch(self.plan.micro(step, m, self.rank, self.world, self.micro_batch))

    def _batch(self, numbers: np.ndarray) -> dict[str, torch.Tensor]:
        places = self.plan.places(numbers)
        batch = self._windows(places[places >= 0])
        if self.recall is not None:
            batch = self._with_recall(batch, numbers, places < 0, self.recall)
        return {name: torch.from_numpy(values) for name, values in batch.items()}

    def _windows(self, starts: np.ndarray) -> dict[str, np.ndarray]:
        length = self.plan.length
        tokens = np.empty((len(starts), length + 1), dtype=np.int64)
        for row, start in enumerate(starts.tolist()):
            tokens[row] = self.store.tokens[start : start + length + 1]
        batch = {"tokens": tokens, "starts": starts}
        if self.isolate_documents:
            batch["documents"] = document_ids(self.store.offsets, starts, length)
        elif self.recall is not None:
            batch["documents"] = np.zeros((len(starts), length), dtype=np.int32)
        return batch

    def _with_recall(
        self, windows: dict[str, np.ndarray], numbers: np.ndarray, recall: np.ndarray, rows: RecallRows
    ) -> dict[str, np.ndarray]:
        """Windows and recall rows in the order of their numbers."""
        shape = len(numbers), self.plan.length
        batch: dict[str, np.ndarray] = {"weights": np.ones(shape, np.float32), "answers": np.zeros(shape, np.int64)}
        corpus = {**windows, "targets": windows["tokens"][:, 1:]}
        for name in corpus.keys() - {"starts"}:
            batch[name] = np.empty((len(numbers), corpus[name].shape[1]), corpus[name].dtype)
            batch[name][~recall] = corpus[name]
        for index in np.flatnonzero(recall).tolist():
            row = rows.row(int(numbers[index]))
            for name in batch:
                batch[name][index] = row[name]
        return {**batch, "mask": np.repeat(~recall[:, None], shape[1], axis=1), "starts": windows["starts"]}


class ValidationBatches(Dataset):
    """Windows over the first `max_tokens` targets of a store (None for all), each target exactly once.

    Each batch is a dict as in TrainBatches and a mask (b, L) bool of the targets that count. The last window is padded
    on the right with eos, and so are whole rows where ranks or batches would come out uneven; every rank has as many
    batches as the others. Only the very first token of the store, an eos, is never a target.
    """

    def __init__(
        self,
        store: TokenStore,
        length: int,
        rank: int,
        world: int,
        micro_batch: int,
        max_tokens: int | None,
        isolate_documents: bool,
    ) -> None:
        if max_tokens is not None and max_tokens < 1:
            raise DataError(f"data.val_tokens={max_tokens}: expected a positive number, or null for the whole split")
        self.targets = min(store.num_tokens - 1, max_tokens or store.num_tokens)
        if self.targets < 1:
            raise DataError("the validation split has no token to predict: it needs more text")
        self.store, self.length, self.rank, self.world = store, length, rank, world
        self.micro_batch, self.isolate_documents = micro_batch, isolate_documents

    def __len__(self) -> int:
        windows = -(-self.targets // self.length)
        return -(-windows // (self.world * self.micro_batch))

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(f"batch {index} of {len(self)}")
        first = (index * self.world + self.rank) * self.micro_batch
        starts = np.arange(first, first + self.micro_batch, dtype=np.int64) * self.length
        tokens = np.full((self.micro_batch, self.length + 1), self.store.eos, dtype=np.int64)
        mask = starts[:, None] + np.arange(self.length) < self.targets
        for row, start in enumerate(starts.tolist()):
            window = self.store.tokens[start : min(start + self.length, self.targets) + 1]
            tokens[row, : len(window)] = window
        arrays = {"tokens": tokens, "mask": mask, "starts": starts}
        if self.isolate_documents:
            arrays["documents"] = document_ids(self.store.offsets, starts, self.length)
        return {name: torch.from_numpy(values) for name, values in arrays.items()}


def document_ids(offsets: np.ndarray, starts: np.ndarray, length: int) -> np.ndarray:
    """Returns the document of each of `length` tokens from each start, counted from 0 in every window.

    A document starts at its eos. Padding beyond the store belongs to the last document. The result is (b, length)
    int32.
    """
    begins = np.zeros((len(starts), length), dtype=np.int32)
    bounds = offsets[:-1]
    for row, start in enumerate(starts.tolist()):
        first, last = np.searchsorted(bounds, [start + 1, start + length])
        begins[row, bounds[first:last] - start] = 1
    return np.cumsum(begins, axis=1, dtype=np.int32)


def _mix(value: np.ndarray) -> np.ndarray:
    """Finalizer of SplitMix64 (Steele, Lea and Flood, 2014) on uint64 arrays, which wrap around."""
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def _feistel(value: np.ndarray, half: int, keys: list[np.uint64]) -> np.ndarray:
    mask, shift = np.uint64(2**half - 1), np.uint64(half)
    left, right = value >> shift, value & mask
    for key in keys:
        left, right = right, left ^ (_mix(right ^ key) & mask)
    return (left << shift) | right
