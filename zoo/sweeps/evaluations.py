"""Evaluations of a sweep, and their options from the command line."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from omegaconf import DictConfig

from zoo.config import ConfigError
from zoo.options.composing import compose_config
from zoo.sweeps.arms import merge


@dataclass(frozen=True)
class EvalTask:
    """Task of eval.py and its overrides."""

    name: str
    overrides: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """The task as it would be typed on the command line."""
        return " ".join([self.name, *self.overrides])

    def compose(self) -> DictConfig:
        """The configuration of eval.py.

        Raises:
            ConfigError: if the task has no such options, or not such values.
        """
        try:
            return compose_config("eval", [f"task={self.name}", *self.overrides])
        except ConfigError as error:
            raise ConfigError(f"task={self.name}: {error}") from error


def give_options(
    tasks: Sequence[EvalTask], given: Sequence[str], options: Mapping[str, Sequence[str]]
) -> list[EvalTask]:
    """Adds ``task.OPTION=...`` to all tasks that have the option, and ``task.members.NAME.OPTION=...`` to one.

    Args:
        tasks: the tasks.
        given: overrides of options of tasks.
        options: names of the options of each task, where options are given.

    Raises:
        ConfigError: if no task has an option.
    """
    overrides: dict[str, list[str]] = {task.name: [] for task in tasks}
    for line in given:
        member, option = re.match(r"\+*task\.(?:members\.(\w+)\.)?(\w*)", line.lstrip("~")).groups()  # type: ignore[union-attr]
        for name in overrides:
            if member == name:
                overrides[name].append(line.replace(f"task.members.{name}.", "task.", 1))
            elif ("members" if member else option) in options[name]:
                overrides[name].append(line)
        if not any(line in lines or member == name for name, lines in overrides.items()):
            listed = "; ".join(f"{name}: {', '.join(found)}" for name, found in options.items())
            raise ConfigError(f"{line}: no task of this sweep has it. Options are, of {listed}.")
    return [EvalTask(task.name, tuple(merge(task.overrides, overrides[task.name]))) for task in tasks]
