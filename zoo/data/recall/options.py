"""Options of ``data.recall``: which recall samples are mixed into training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from pydantic import field_validator

from zoo.data.recall.base import RecallTask
from zoo.data.recall.build import build_task
from zoo.data.recall.samples import RecallError
from zoo.registry import RECALL_TASKS
from zoo.schema.base import Number, Options, Positive, Whole, model_of_signature, option
from zoo.schema.messages import sentence, suggest


@dataclass(frozen=True)
class MixEntry:
    """One variant of a task of a mix; ``name`` is the task's in the mix, ``weight`` relative to all others'."""

    name: str
    variant: str
    weight: float
    task: RecallTask


class EntryOptions(Options):
    """Options that every task of a mix has beside its own."""

    task: str | None = option("a recall task; null: the one that the entry is called after", default=None)
    weight: Number = option("share of the samples, relative to the other tasks; 0: none", ge=0, default=1.0)
    variants: list[str] | None = option("of the task, drawn with equal chances; null: the first", default=None)


@cache
def _model(task: type[RecallTask]) -> type[EntryOptions]:
    """Options of an entry with this task."""
    return model_of_signature(task, f"{task.__name__}Options", base=EntryOptions)


def read_entries(name: str, options: Mapping[str, Any] | None) -> list[MixEntry]:
    """Reads the options ``data.recall.tasks.NAME``: weight, variants, task, and options of the task.

    ``task`` is NAME by default, and ``variants`` the first one.

    Raises:
        ValueError: on an unknown task, variant or option, and on values of another type or out of range.
    """
    path, given = f"data.recall.tasks.{name}", dict(options or {})
    task = given.get("task") or name
    if task not in RECALL_TASKS:
        raise RecallError(f"{path}: unknown task {task!r}; {sentence(suggest(str(task), RECALL_TASKS))}")
    read = _model(RECALL_TASKS.get(task)).read(given, path)
    own = read.model_dump(exclude_unset=True, exclude=set(EntryOptions.model_fields))
    variants: Sequence[str | None] = read.variants or [None]
    try:
        made = [build_task(task, variant, **own) for variant in variants]
    except RecallError as error:
        raise RecallError(f"{path}: {error}") from error
    first = next(iter(made[0].VARIANTS))
    return [MixEntry(name, v or first, read.weight / len(variants), t) for v, t in zip(variants, made)]


class RecallOptions(Options):
    """Recall samples among the sequences that a run is trained on; configs/data/recall."""

    share: Number = option("share of the sequences that are recall samples; the rest are text", ge=0, le=1, default=0.5)
    shortest: Whole = option(
        "tokens of a sample, at least; at most data.length, several fill a sequence", ge=2, default=32
    )
    tight: Number = option(
        "share of the samples that are as short as their task allows, for more answers per token",
        ge=0,
        le=1,
        default=0.5,
    )
    haystack: list[Literal["noise", "corpus"]] = option(
        "what surrounds the facts, with equal chances: noise, or lines of the text",
        min_length=1,
        default=["noise", "corpus"],
    )
    answer_weight: Number = option(
        "weight of the loss of each token of an answer; a token of text has 1", ge=0, default=8.0
    )
    context_weight: Number = option("weight of the loss of the other tokens of recall samples", ge=0, default=0.0)
    val_samples: Positive = option("samples to validate on, never the same as those trained on", default=64)
    tasks: dict[str, dict[str, Any] | None] = option(
        "by name {weight, variants, task, and options of the task}", default={}
    )

    @field_validator("tasks")
    @classmethod
    def _check_tasks(cls, tasks: dict[str, dict[str, Any] | None]) -> dict[str, dict[str, Any] | None]:
        if not any(entry.weight > 0 for name, node in tasks.items() for entry in read_entries(name, node)):
            raise RecallError("data.recall.tasks has no task of a weight above 0: name at least one.")
        return tasks

    def entries(self) -> list[MixEntry]:
        """Returns the tasks of the mix, variant by variant, without those of weight 0."""
        return [entry for name, node in self.tasks.items() for entry in read_entries(name, node) if entry.weight > 0]
