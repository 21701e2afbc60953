"""Construction of recall tasks by name and variant."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from zoo.data.recall.base import RecallTask
from zoo.data.recall.samples import RecallError
from zoo.registry import RECALL_TASKS


def build_task(name: str, variant: str | None = None, **options: Any) -> RecallTask:
    """Builds a recall task by name, in its first or the given variant, with further options.

    Raises:
        RecallError: on an unknown name, variant or option; the message lists those that exist.
    """
    if name not in RECALL_TASKS:
        raise RecallError(f"task {name!r}: expected one of {', '.join(RECALL_TASKS)}.")
    task: type[RecallTask] = RECALL_TASKS.get(name)
    variant = variant if variant is not None else next(iter(task.VARIANTS))
    if variant not in task.VARIANTS:
        raise RecallError(f"{name} has no variant {variant!r}: expected one of {', '.join(task.VARIANTS)}.")
    known = [field.name for field in fields(task)]
    unknown = [option for option in options if option not in known]
    if unknown:
        raise RecallError(f"{unknown[0]} is not an option of {name}: expected one of {', '.join(known) or 'none'}.")
    return task(**{**task.VARIANTS[variant], **options})
