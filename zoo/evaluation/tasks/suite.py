"""Suites: several tasks in one evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import PrivateAttr

from zoo.config import ConfigError
from zoo.evaluation.tasks.base import PATH, Lengths, Task, TaskOptions, TaskSuite, build_task
from zoo.evaluation.tasks.cell_task import CellTask
from zoo.registry import TASKS
from zoo.schema.base import Flag, Positive, Text, option


@TASKS.register("offline")
class Suite(TaskSuite):
    """Tasks that are evaluated one after the other, each with its own result file.

    With ``lengths``, variants that do not fit them are left out with a note.
    """

    name: str
    members: dict[str, dict[str, Any] | None] = option(
        "options of each task by its name; null for one that is left out", default={}
    )
    lengths: Lengths | None = option("of every member made of samples; null: its own", default=None)
    samples: Positive | None = option("of every member made of samples; null: its own", default=None)
    haystack: Text | None = option("of every member made of samples; null: its own", default=None)
    fresh: Flag | None = option("of every member; null: its own", default=None)
    _tasks: dict[str, Any] = PrivateAttr(default_factory=dict)

    def __init__(self, path: str = PATH, /, **given: Any) -> None:
        TaskOptions.__init__(self, path, **given)
        for name, options in self.members.items():
            if options is not None:
                self._tasks[name] = self._member(f"{path}.members.{name}", {"name": name, **options})
        if not self._tasks:
            raise ConfigError(f"{path}.members has no task: expected some, as {path}.members.perplexity={{}}.")

    def tasks(self) -> Iterator[tuple[str, Task]]:
        """Yields the members by name."""
        yield from self._tasks.items()

    def _member(self, path: str, options: Mapping[str, Any]) -> Task:
        own = dict(options)
        if "samples" in own:
            common = {key: getattr(self, key) for key in ("lengths", "samples", "haystack")}
            own |= {key: value for key, value in common.items() if value is not None}
        if self.fresh is not None:
            own["fresh"] = self.fresh
        task: Task = build_task(own, path)
        if isinstance(task, CellTask) and self.lengths is not None:
            task.accept_misfits()  # lengths of all are not those of one
        return task
