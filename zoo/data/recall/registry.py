"""Recall tasks by name."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from zoo.data.recall.base import RecallTask
from zoo.data.recall.samples import RecallError
from zoo.data.recall.tasks.babi import Babi
from zoo.data.recall.tasks.cwe import CommonWords
from zoo.data.recall.tasks.fwe import FrequentWords
from zoo.data.recall.tasks.kv import KeyValue
from zoo.data.recall.tasks.mqar import MQAR
from zoo.data.recall.tasks.niah import Needle
from zoo.data.recall.tasks.passkey import Passkey
from zoo.data.recall.tasks.vt import VariableTracking

TASKS: dict[str, type[RecallTask]] = {
    task.name: task for task in (MQAR, Passkey, KeyValue, Needle, VariableTracking, CommonWords, FrequentWords, Babi)
}


def build_task(name: str, variant: str | None = None, **options: Any) -> RecallTask:
    """The recall task called ``name``, in its first or the given variant, with options on top of the variant's.

    Raises:
        RecallError: on an unknown name, variant or option; the message lists those that exist.
    """
    if name not in TASKS:
        raise RecallError(f"task {name!r}: expected one of {', '.join(TASKS)}.")
    task = TASKS[name]
    variant = variant if variant is not None else next(iter(task.VARIANTS))
    if variant not in task.VARIANTS:
        raise RecallError(f"{name} has no variant {variant!r}: expected one of {', '.join(task.VARIANTS)}.")
    known = [field.name for field in fields(task)]
    unknown = [option for option in options if option not in known]
    if unknown:
        raise RecallError(f"{unknown[0]} is not an option of {name}: expected one of {', '.join(known) or 'none'}.")
    return task(**{**task.VARIANTS[variant], **options})
