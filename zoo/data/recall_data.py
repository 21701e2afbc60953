"""Recall samples as rows of training and validation batches."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset

from zoo.data.recall.base import Place
from zoo.data.recall.encoder import Encoder
from zoo.data.recall.haystack import Haystack, NoiseHaystack, StoreHaystack
from zoo.data.recall.options import MixEntry, RecallOptions
from zoo.data.recall.samples import RecallError, Sample, sample_rng
from zoo.data.store.token_store import TokenStore

if TYPE_CHECKING:
    import random

    from transformers import PreTrainedTokenizerFast

TRIES = 8  # draws of a sample before the rest of a row stays empty
PROBES = 8  # samples that must fit before a length counts as enough for a task
PARTS = 2**16  # samples of a row, at most


def check_fit(entry: MixEntry, length: int, seed: int, encoder: Encoder, haystack: Haystack) -> None:
    """Checks that all samples of an entry fit ``length`` tokens.

    Raises:
        RecallError: with the option to change.
    """
    try:
        for index in range(PROBES):
            entry.task.sample(Place(index, length, None, "train", seed), encoder, haystack)
    except RecallError as error:
        raise too_short(entry, length, error) from error


def too_short(entry: MixEntry, length: int, error: RecallError) -> RecallError:
    """Returns the error of an entry that does not fit, with the option to change."""
    reason = str(error).partition(" Choose ")[0].rstrip(".")
    return RecallError(
        f"{entry.variant} of data.recall.tasks.{entry.name} does not fit data.length={length} ({reason}): "
        "choose a longer data.length, other variants or options, or weight 0."
    )


class RecallRows:
    """Sequences of length + 1 tokens that hold recall samples one after the other; each is a function of its number.

    A sample begins with the document token. Its length is what its task needs (for a share ``tight`` of them), else
    drawn log-uniformly from that to what is left of the row.

    Attributes:
        entries: variants of tasks.
        names: names of the tasks.
        least: the shortest length for each entry.

    Raises:
        RecallError: if a task does not fit ``length``.
    """

    def __init__(
        self,
        options: RecallOptions,
        tokenizer: PreTrainedTokenizerFast,
        stores: Mapping[str, TokenStore],
        length: int,
        seed: int,
    ) -> None:
        self.options, self.tokenizer, self.stores, self.length, self.seed = options, tokenizer, stores, length, seed
        self.entries = options.entries()
        self.names = list(dict.fromkeys(entry.name for entry in self.entries))
        self.least = [self._least(entry) for entry in self.entries]

    @cached_property
    def _supply(self) -> tuple[Encoder, dict[str, list[Haystack]]]:
        """Encoder, and haystacks of the splits train and eval."""
        encoder = Encoder(self.tokenizer)
        made: dict[str, list[Haystack]] = {}
        for split, store in (("train", self.stores["train"]), ("eval", self.stores["validation"])):
            kinds: dict[str, Haystack] = {"noise": NoiseHaystack(encoder)}
            if "corpus" in self.options.haystack:
                kinds["corpus"] = StoreHaystack(encoder, store)
            made[split] = [kinds[name] for name in self.options.haystack]
        return encoder, made

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_supply"}

    def facts(self) -> dict[str, Any]:
        """Returns the recall tasks that are trained on, as plain data for the checkpoint."""
        options = self.options.model_dump() | {"haystack": list(self.options.haystack), "length": self.length}
        tasks: dict[str, dict[str, Any]] = {name: {} for name in self.names}
        for entry in self.entries:
            tasks[entry.name][entry.variant] = {"task": entry.task.name, "weight": entry.weight, **asdict(entry.task)}
        return json.loads(json.dumps({**options, "tasks": tasks}))

    def fingerprint(self) -> str:
        """Returns the SHA-256 over the options and the first rows, to check that a resumed run has the same samples."""
        digest = hashlib.sha256(json.dumps(self.facts(), sort_keys=True).encode())
        for number in range(4):
            digest.update(self.row(number)["tokens"].astype("<i8").tobytes())
        return digest.hexdigest()

    def row(self, number: int) -> dict[str, np.ndarray]:
        """Returns row ``number`` of the split train.

        tokens (L+1,) int64; of its targets: targets (L,) int64, the next token or a label in its place, weights (L,)
        float32 and answers (L,) int64, the running number of the answer that each belongs to, from 1, and 0 elsewhere;
        of its inputs: documents (L,) int32.
        """
        return self._lay_out(list(self._samples(number)))

    def validation(self, number: int) -> tuple[dict[str, np.ndarray], int]:
        """Returns a sample of the split eval of exactly ``length`` tokens as a row, and the index of its task."""
        name, turn = number % len(self.names), number // len(self.names)
        variants = [entry for entry in self.entries if entry.name == self.names[name]]
        entry = variants[turn % len(variants)]
        encoder, haystacks = self._supply
        haystack = haystacks["eval"][turn // len(variants) % len(haystacks["eval"])]
        for attempt in range(TRIES):  # facts differ in length
            # Another seed than that of an evaluation, so that it does not ask the same.
            place = Place(number * TRIES + attempt, self.length, None, "eval", self.seed + 1)
            try:
                return self._lay_out([entry.task.sample(place, encoder, haystack)]), name
            except RecallError as error:
                reason = error
        raise too_short(entry, self.length, reason) from reason

    def _samples(self, number: int) -> Iterator[Sample]:
        left, part = self.length + 1, 0
        while left >= min(self.least) and (sample := self._sample(number, part, left)) is not None:
            yield sample
            left, part = left - len(sample), part + 1

    def _sample(self, number: int, part: int, left: int) -> Sample | None:
        """A sample of ``left`` tokens at most; None if several draws did not fit."""
        encoder, haystacks = self._supply
        fitting = [index for index, least in enumerate(self.least) if least <= left]
        weights = [self.entries[index].weight for index in fitting]
        for attempt in range(TRIES):
            index = (number * PARTS + part) * TRIES + attempt
            rng = sample_rng("row", self.seed, index)
            chosen = rng.choices(fitting, weights)[0]
            length = self._draw_length(rng, self.least[chosen], left)
            place = Place(index, length if attempt == 0 else left, None, "train", self.seed)
            try:
                return self.entries[chosen].task.sample(place, encoder, rng.choice(haystacks["train"]))
            except RecallError:
                continue
        return None

    def _draw_length(self, rng: random.Random, least: int, left: int) -> int:
        tight = rng.random() < self.options.tight
        length = least if tight else round(least * (left / least) ** rng.random())
        return left if left - length < min(self.least) else length

    def _least(self, entry: MixEntry) -> int:
        """Shortest of a few lengths that samples fit in; twice as long each, since draws differ."""
        encoder, haystacks = self._supply
        length = self.options.shortest
        while True:
            length = min(length, self.length)
            try:
                check_fit(entry, length, self.seed, encoder, haystacks["train"][0])
                return length
            except RecallError:
                if length >= self.length:
                    raise
                length *= 2

    def _lay_out(self, samples: Sequence[Sample]) -> dict[str, np.ndarray]:
        tokens = np.full(self.length + 1, self._supply[0].document_token, dtype=np.int64)
        wanted = tokens.copy()
        weights = np.zeros(self.length, dtype=np.float32)
        answers, documents = np.zeros(self.length, dtype=np.int64), np.zeros(self.length, dtype=np.int32)
        begin = count = 0
        for number, sample in enumerate(samples):
            end = begin + len(sample)
            tokens[begin:end], wanted[begin:end] = sample.tokens, sample.targets
            documents[begin:] = number
            weights[max(begin - 1, 0) : end - 1] = self.options.context_weight
            for answer in sample.answers:
                count += 1
                targets = slice(begin + answer.start - 1, begin + answer.stop - 1)
                weights[targets], answers[targets] = self.options.answer_weight, count
            begin = end
        documents[begin:] += 1  # padding is nobody's
        of_targets = {"targets": wanted[1:], "weights": weights, "answers": answers}
        return {"tokens": tokens, **of_targets, "documents": documents}


class RecallValidation(Dataset):
    """Samples of the split eval, one per row, the tasks in turn; every rank has as many batches as the others.

    Each batch is a dict of tokens (b, L+1), targets and answers (b, L) as of :meth:`RecallRows.row`, and tasks (b,)
    int64, the index of each row's. Rows that fill the last batch have no answers.
    """

    def __init__(self, rows: RecallRows, rank: int, world: int, micro_batch: int) -> None:
        self.rows, self.rank, self.world, self.micro_batch = rows, rank, world, micro_batch
        self.count = -(-rows.options.val_samples // len(rows.names)) * len(rows.names)  # as many of each task
        self._made: dict[int, dict[str, torch.Tensor]] = {}

    def __len__(self) -> int:
        return -(-self.count // (self.world * self.micro_batch))

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(f"batch {index} of {len(self)}")
        if index not in self._made:
            first = (index * self.world + self.rank) * self.micro_batch
            self._made[index] = self._batch(range(first, first + self.micro_batch))
        return self._made[index]

    def _batch(self, numbers: range) -> dict[str, torch.Tensor]:
        made = [self.rows.validation(number % self.count) for number in numbers]
        arrays = {name: np.stack([row[name] for row, _ in made]) for name in ("tokens", "targets", "answers")}
        arrays["answers"][[number >= self.count for number in numbers]] = 0
        arrays["tasks"] = np.array([task for _, task in made], dtype=np.int64)
        return {name: torch.from_numpy(values) for name, values in arrays.items()}
