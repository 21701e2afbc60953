"""Records of question answering as a task of evaluation."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from zoo.data.documents import Document, digest_documents
from zoo.data.qa.compose_qa import TRUNCATIONS, compose_question, compose_record, needed_tokens
from zoo.data.qa.distractors import DistractorPool
from zoo.data.qa.records import QARecord, check_ids
from zoo.data.recall.base import Place
from zoo.data.recall.encoder import Encoder
from zoo.data.recall.haystack import Haystack
from zoo.data.recall.samples import RecallError, Sample, digest, sample_rng


@dataclass(frozen=True)
class QASet:
    """Records in an order that is shuffled by the seed of a place; used like :class:`zoo.data.recall.base.RecallTask`.

    Attributes:
        name: name of the set.
        records: records with unique ids.
        fill: see :func:`zoo.data.qa.compose_qa.compose_record`.
        truncate: see :func:`zoo.data.qa.compose_qa.compose_record`.
        pool: records whose texts serve as distractors; None for all of these.
        notes: sentences on what was left out when the records were read.
    """

    name: str
    records: tuple[QARecord, ...] = field(repr=False)
    fill: bool = True
    truncate: str = "error"
    pool: DistractorPool | None = field(default=None, repr=False, compare=False)
    notes: tuple[str, ...] = field(default=(), repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.truncate not in TRUNCATIONS:
            raise RecallError(f"truncate={self.truncate!r}: expected one of {', '.join(TRUNCATIONS)}.")
        if not self.records:
            raise RecallError(f"{self.name} has no records.")
        check_ids(self.records)

    @property
    def count(self) -> int:
        """Number of records, and therefore of samples."""
        return len(self.records)

    @property
    def has_depth(self) -> bool:
        """Whether every record requires one text whose place among distractors can be chosen."""
        return self.fill and all(r.kind != "completion" and len(r.paragraphs) == 1 for r in self.records)

    @property
    def has_zero_length(self) -> bool:
        """Whether the required text alone is a baseline of its own, unlike a long document."""
        return self.fill

    @property
    def recipe(self) -> list[Any]:
        """JSON-like description of all that samples depend on, except place and encoder."""
        return ["qa", self.name, self.fingerprint, self._distractors.fingerprint, self.fill, self.truncate]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the records in their order."""
        parts = ([r.question, r.answers, r.paragraphs, r.distractors, r.kind, r.options] for r in self.records)
        return digest_documents(Document(r.id, json.dumps(part)) for r, part in zip(self.records, parts))

    def sample(self, place: Place, encoder: Encoder, haystack: Haystack | None = None) -> Sample:
        """Returns the sample at a place, of ``place.length`` tokens, or at most so many without ``fill``.

        The text around the answer comes from the set itself, so that ``haystack`` is not used.

        Raises:
            RecallError: if there are fewer records than ``place.index``, or the record does not fit the length.
        """
        record = self._record(place)
        rng = sample_rng(self.name, record.id, place.length, place.depth, place.seed)
        made = compose_record(
            record,
            self._distractors,
            encoder,
            rng,
            place.length,
            place.depth,
            fill=self.fill,
            truncate=self.truncate,
        )
        return replace(made, id=f"{self.name}-{record.id}")

    def without_context(self, place: Place, encoder: Encoder, haystack: Haystack | None = None) -> Sample:
        """Returns the question alone, to measure what a model scores without reading."""
        record = self._record(place)
        return replace(compose_question(record, self._distractors, encoder), id=f"{self.name}-{record.id}")

    def fitting(self, length: int, encoder: Encoder) -> QASet:
        """Returns the set of records that fit a length, with distractors from all.

        Use it with the shortest of several lengths, so that every length has the same questions.

        Raises:
            RecallError: if there is none; the message says which length would do.
        """
        whole = self.truncate == "error"
        needed = [needed_tokens(record, encoder, text=whole) for record in self.records]
        kept = tuple(record for record, tokens in zip(self.records, needed) if tokens <= length)
        if not kept:
            raise RecallError(
                f"{self.name}: no record fits length={length} with this tokenizer. "
                f"Choose task.lengths from {min(needed)} on."
            )
        return replace(self, records=kept, pool=self._distractors)

    @cached_property
    def _distractors(self) -> DistractorPool:
        return self.pool or DistractorPool(self.records)

    @cached_property
    def _orders(self) -> dict[int, list[int]]:
        return {}

    def _record(self, place: Place) -> QARecord:
        if place.split != "eval":
            raise RecallError(
                f"{self.name} is for evaluation only: its records are not divided (split={place.split!r})."
            )
        if not 0 <= place.index < self.count:
            raise RecallError(
                f"{self.name} has {self.count} records, so that there is no sample {place.index}. "
                f"Choose task.samples up to {self.count}."
            )
        if place.seed not in self._orders:
            keys = [digest(place.seed, record.id) for record in self.records]
            self._orders[place.seed] = sorted(range(self.count), key=keys.__getitem__)
        return self.records[self._orders[place.seed][place.index]]
