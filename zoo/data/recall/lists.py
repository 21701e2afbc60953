"""Helpers of tasks over lists: questions whose answer is a list, and the check of integer options."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from zoo.data.recall.samples import Question, RecallError


def ask_list(prompt: str, values: Sequence[str], pool: Iterable[str]) -> tuple[Question, ...]:
    """Returns questions that ask a list value by value, each after the right ones before it, so that every hit counts.

    Args:
        prompt: prompt of the first value; a comma precedes each further one.
        values: the right values, in order.
        pool: values of the context; for each question all but the right one are the others.
    """
    pool = tuple(dict.fromkeys(pool))
    return tuple(
        Question("," if number else prompt, f" {value}", tuple(f" {other}" for other in pool if other != value))
        for number, value in enumerate(values)
    )


def check_least(task: str, least: int, **options: Any) -> None:
    """Checks that options are integers of at least ``least``.

    Raises:
        RecallError: for the first that is not.
    """
    for option, value in options.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise RecallError(f"{task}: {option}={value!r}: expected a whole number, {least} or more.")
