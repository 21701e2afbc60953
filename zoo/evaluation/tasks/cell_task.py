"""Base of tasks made of cells (variant, length, depth) with some samples each; an evaluation resumes cell by cell."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, Protocol

from annotated_types import Ge, Le
from pydantic import AfterValidator, BeforeValidator, PrivateAttr

from zoo.data import DataError
from zoo.data.recall.base import Place
from zoo.data.recall.cache import sample_cache, samples_digest
from zoo.data.recall.encoder import Encoder
from zoo.data.recall.haystack import Haystack, NoiseHaystack, StoreHaystack
from zoo.data.recall.samples import RecallError, Sample
from zoo.evaluation.display.progress import progress_bar
from zoo.evaluation.results.models import Record
from zoo.evaluation.scoring.answer_records import describe_sample, make_records
from zoo.evaluation.scoring.answers import score_samples
from zoo.evaluation.tasks.answer_results import NO_CONTEXT, ZERO_LENGTH, AnswerResults
from zoo.evaluation.tasks.base import Keep, Lengths, Outcome, Role, Task, listed, make_anew
from zoo.runs.corpus import open_corpus
from zoo.runs.file_names import path_part
from zoo.runs.subject import Subject
from zoo.schema.base import Count, Flag, PathText, Positive, Whole, option

SHORTEST = 256


class Questions(Protocol):
    """Protocol of sources of samples: a recall task, or records of a question-answering set."""

    @property
    def has_depth(self) -> bool:
        """Whether one fact is asked for, whose depth can be chosen."""
        ...

    @property
    def recipe(self) -> Any:
        """JSON-like description of all that samples depend on, except place, encoder and haystack."""
        ...

    def sample(self, place: Place, encoder: Encoder, haystack: Haystack) -> Sample:
        """Returns the sample at a place."""
        ...

    def without_context(self, place: Place, encoder: Encoder, haystack: Haystack) -> Sample:
        """Returns the same question without its context."""
        ...


@dataclass(frozen=True)
class SampleCell:
    """Samples that share a variant, a length (0: no filler) and a depth."""

    variant: str
    questions: Questions
    length: int
    depth: float | None
    count: int
    bare: bool = False

    def place(self, task: str) -> dict[str, Any]:
        """Returns variant, length and depth for a record, with the name of the task."""
        suffix = NO_CONTEXT if self.bare else "" if self.length else ZERO_LENGTH
        return {"task": task, "variant": self.variant + suffix, "length": self.length, "depth": self.depth}

    def samples(self, encoder: Encoder, haystack: Haystack, seed: int) -> list[Sample]:
        """Returns the samples 0 .. count - 1, all of the split ``eval``."""
        make = self.questions.without_context if self.bare else self.questions.sample
        places = (Place(i, self.length or None, self.depth, "eval", seed) for i in range(self.count))
        return [make(place, encoder, haystack) for place in places]


def _plain_depth(depth: float) -> float:
    return int(depth) if depth.is_integer() else depth


Depth = Annotated[float, Ge(0), Le(1), AfterValidator(_plain_depth)]


class CellTask(Task):
    """Base of tasks made of cells."""

    kind = AnswerResults()

    name: Annotated[str, Role.SPEED]
    lengths: Annotated[Lengths | None, Role.PLACED] = option(
        "tokens of each sample, the document token, question and answer included; null: half the trained length, that "
        "length and twice it, 256 at least; for runs trained on recall once, twice and four times",
        default=None,
    )
    depths: Annotated[list[Depth], BeforeValidator(listed)] | None = option(
        "of the fact that is asked for, 0 the first place and 1 the last; null: anywhere", default=None
    )
    samples: Positive = option("of each variant, length and depth", default=32)
    haystack: Annotated[PathText, Role.PLACED] = option(
        "noise, corpus (the run's own test text), or a path to local text", default="noise"
    )
    baselines: Flag = option("also ask without any context, and with the facts alone", default=True)
    choices: Annotated[Whole, Ge(2)] = option(
        "values compared for rank_accuracy, the right one included, where there are some", default=8
    )
    generate: Count = option("tokens to generate, for f1 and contains; 0: teacher forcing only", default=0)
    batch_tokens: Annotated[Positive, Role.SPEED] = option(
        "tokens of a forward pass; no influence on the result", default=8_192
    )
    _strict: bool = PrivateAttr(True)

    def accept_misfits(self) -> None:
        """Leaves out lengths and variants that do not fit each other, with a note, even if they were asked for."""
        self._strict = False

    def check(self, subject: Subject, seed: int) -> None:
        """Checks the options by making all samples, which are stored for the evaluation."""
        encoder = Encoder(subject.tokenizer)
        self._make(subject, encoder, self._open_haystack(subject, encoder), seed)

    def evaluate(self, subject: Subject, seed: int, keep: Keep = make_anew) -> Outcome:
        """Evaluates a model on all cells.

        Raises:
            DataError: if the task cannot be made as asked.
        """
        encoder = Encoder(subject.tokenizer)
        haystack = self._open_haystack(subject, encoder)
        cells, made, notes = self._make(subject, encoder, haystack, seed)
        lines: list[dict[str, Any]] = []
        records: list[Record] = []
        with progress_bar(f"{self.name}: scoring samples", sum(cell.count for cell in cells)) as advance:
            for cell, samples in zip(cells, made):
                content = self._score(subject, keep, cell, samples)
                advance(cell.count)
                lines += content["lines"]
                records += make_records(cell.place(self.name), content["lines"], seed, content["seconds"])
        asked = {"lengths": self.all_lengths(subject), "haystack_sha": haystack.fingerprint, "seed": seed}
        return Outcome(
            name=(self.name,),
            title=self.name,
            protocol=self.protocol() | asked,
            records=records + _pool_depths(self.name, lines, seed),
            samples=lines,
            warnings=self._warnings(subject, cells, made) + notes,
        )

    def questions(self, subject: Subject, encoder: Encoder) -> Mapping[str, Questions]:
        """Returns the source of samples of each variant."""
        raise NotImplementedError

    def all_lengths(self, subject: Subject) -> list[int]:
        """Returns the lengths that are asked, ascending."""
        if self.lengths is not None:
            return sorted(set(self.lengths))
        trained = subject.train_length
        if subject.recall:
            return [trained, 2 * trained, 4 * trained]
        return sorted({max(SHORTEST, length) for length in (trained // 2, trained, 2 * trained)})

    def _cells(self, subject: Subject, variants: Mapping[str, Questions]) -> Iterator[SampleCell]:
        """Per variant: its baselines, then all lengths and depths."""
        for variant, questions in variants.items():
            count = min(self.samples, getattr(questions, "count", self.samples))
            if self.baselines and getattr(questions, "has_baselines", True):
                yield SampleCell(variant, questions, 0, None, count, bare=True)
                if getattr(questions, "has_zero_length", True):
                    yield SampleCell(variant, questions, 0, None, count)
            for length in self.all_lengths(subject):
                for depth in self.depths if self.depths and questions.has_depth else [None]:
                    yield SampleCell(variant, questions, length, depth, count)

    def _make(
        self, subject: Subject, encoder: Encoder, haystack: Haystack, seed: int
    ) -> tuple[list[SampleCell], list[list[Sample]], list[str]]:
        """Cells with their samples, and notes on what does not fit a length.

        Raises:
            RecallError: if a variant and a length that were both asked for do not go together, if no variant fits a
                length that was asked for, or if there is nothing to ask.
        """
        cells: list[SampleCell] = []
        made: list[list[Sample]] = []
        notes = []
        strict = self._strict and self.lengths is not None
        failed: dict[int, RecallError] = {}
        origin = [seed, encoder.fingerprint, haystack.fingerprint]
        with sample_cache(subject.text.cache_dir) as cached:
            for cell in self._cells(subject, self.questions(subject, encoder)):
                recipe = [cell.questions.recipe, cell.length, cell.depth, cell.count, cell.bare, *origin]
                try:
                    made.append(cached(recipe, partial(cell.samples, encoder, haystack, seed)))
                    cells.append(cell)
                except RecallError as error:
                    if strict and cell.variant in (getattr(self, "variants", [cell.variant]) or ()):
                        raise
                    failed[cell.length] = error
                    notes.append(f"{cell.variant} at {cell.length} tokens is left out: {error}")
            for length in failed.keys() - {cell.length for cell in cells} if strict else ():
                raise failed[length]
            if not any(cell.length for cell in cells):
                raise RecallError(notes[-1] if notes else f"{self.name} has no variant to ask: choose task.variants.")
        return cells, made, list(dict.fromkeys(notes))

    def _score(self, subject: Subject, keep: Keep, cell: SampleCell, samples: list[Sample]) -> dict[str, Any]:
        place = cell.place(self.name)

        def score() -> dict[str, Any]:
            scores = score_samples(
                subject.decoder,
                samples,
                batch_tokens=self.batch_tokens,
                choices=self.choices,
                generate=self.generate,
                tokenizer=subject.tokenizer,
            )
            return {"lines": [describe_sample(place, sample, found) for sample, found in zip(samples, scores)]}

        return keep([place, self.choices, self.generate, samples_digest(samples)], score)

    def _open_haystack(self, subject: Subject, encoder: Encoder) -> Haystack:
        if self.haystack == "noise":
            return NoiseHaystack(encoder)
        try:
            corpus = open_corpus(subject, "test", None if self.haystack == "corpus" else self.haystack)
        except DataError as error:
            error.call("task.", path="task.haystack", text_column=None)
            raise
        return StoreHaystack(encoder, corpus.store, corpus.name)

    def name_parts(self, subject: Subject) -> list[str]:
        parts = [] if self.haystack == "noise" else [Path(self.haystack).stem]
        parts += self.named() + self.places()
        if self.lengths is not None:
            parts.append("lengths" + "_".join(map(str, self.all_lengths(subject))))
        if self.haystack not in ("noise", "corpus"):
            parts.append(path_part(self.haystack))
        return parts + self.changed()

    def places(self) -> list[str]:
        """Returns the parts of the file name that identify the questions."""
        return []

    def _warnings(self, subject: Subject, cells: list[SampleCell], made: list[list[Sample]]) -> list[str]:
        warnings = []
        trained = subject.train_length
        beyond = sorted({cell.length for cell in cells if cell.length > trained})
        if beyond:
            warnings.append(f"Lengths {', '.join(map(str, beyond))} are beyond the {trained} tokens of training.")
        cut = sum(sample.truncated > 0 for samples in made for sample in samples)
        if cut:
            warnings.append(f"{cut} of {sum(map(len, made))} texts were cut in the middle to fit their length.")
        few = min(cell.count for cell in cells)
        if few < self.samples:
            warnings.append(f"There are only {few} questions where task.samples={self.samples}.")
        warnings += dict.fromkeys(note for cell in cells for note in getattr(cell.questions, "notes", ()))
        return warnings


def _pool_depths(task: str, lines: list[dict[str, Any]], seed: int) -> list[Record]:
    """Records over all depths of a variant and length, where there are several."""
    records = []
    placed = (line for line in lines if line["depth"] is not None)
    for (variant, length), group in groupby(placed, key=lambda line: (line["variant"], line["length"])):
        members = list(group)
        if len({line["depth"] for line in members}) > 1:
            place = {"task": task, "variant": variant, "length": length, "depth": None}
            records += make_records(place, members, seed)
    return records
