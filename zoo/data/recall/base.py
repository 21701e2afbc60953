"""Base class of recall tasks."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

from zoo.data.recall.compose import Facts, compose
from zoo.data.recall.encoder import Encoder
from zoo.data.recall.haystack import Haystack
from zoo.data.recall.samples import ATTEMPTS, RecallError, Sample, belongs, digest, sample_rng


@dataclass(frozen=True)
class Place:
    """Place of a sample in the design of an experiment; its random numbers are a function of this alone.

    Attributes:
        index: number of the sample, from 0.
        length: tokens in all; None for facts and questions without filler.
        depth: depth of the fact that is asked for, 0..1; None for anywhere.
        split: ``train`` or ``eval``.
        seed: another seed gives other samples.
    """

    index: int
    length: int | None
    depth: float | None = None
    split: str = "eval"
    seed: int = 0


@dataclass(frozen=True)
class RecallTask(ABC):
    """Base of recall tasks, whose questions have their answers in the context.

    Subclasses are frozen dataclasses whose fields are options.

    Attributes:
        name: name of the task.
        VARIANTS: options of each named variant; the first is the plain one.
    """

    name: ClassVar[str]
    VARIANTS: ClassVar[dict[str, dict[str, Any]]] = {"default": {}}

    @property
    def has_depth(self) -> bool:
        """Whether one fact is asked for, whose depth can be chosen."""
        return True

    @abstractmethod
    def draw(self, rng: random.Random, length: int | None, encoder: Encoder) -> Facts:
        """Draws facts and questions of one sample, which must depend on ``rng`` and the arguments alone."""

    @property
    def recipe(self) -> Any:
        """JSON-like description of all that samples depend on, except place, encoder and haystack."""
        return [self.name, asdict(self)]

    def sample(self, place: Place, encoder: Encoder, haystack: Haystack) -> Sample:
        """Returns the sample at a place, of exactly ``place.length`` tokens.

        Raises:
            RecallError: if the task does not fit the length.
            ValueError: on an unknown split.
        """
        facts, rng, identity = self._facts(place, encoder)
        try:
            made = compose(facts, encoder, haystack, rng, place.length, place.depth)
        except RecallError as error:
            raise RecallError(f"{self.name}: {error}. Choose a longer task.lengths, or an easier variant.") from error
        return Sample(identity, made.tokens, made.answers, made.depth)

    def without_context(self, place: Place, encoder: Encoder, haystack: Haystack) -> Sample:
        """Returns the same question without anything that answers it, to measure what a model scores by guessing."""
        facts, rng, identity = self._facts(place, encoder)
        made = compose(replace(facts, facts=(), placed=None), encoder, haystack, rng, None, None)
        return Sample(identity, made.tokens, made.answers, None)

    def _facts(self, place: Place, encoder: Encoder) -> tuple[Facts, random.Random, str]:
        """Draws until the content belongs to the split; about every second one does."""
        key = [self.name, asdict(self), place.length, place.depth, place.seed, place.index, place.split]
        for attempt in range(ATTEMPTS):
            rng = sample_rng(key, attempt)
            facts = self.draw(rng, place.length, encoder)
            content = [facts.facts, [[q.prompt, q.answer] for q in facts.questions]]
            if belongs(content, place.split):
                return facts, rng, f"{self.name}-{digest(content, key):032x}"
        raise RecallError(f"{self.name}: no content of the split {place.split!r} in {ATTEMPTS} draws: it has too few.")
