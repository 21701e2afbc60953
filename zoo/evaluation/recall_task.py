"""Recall tasks that are generated, by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from zoo.data.recall.encoder import Encoder
from zoo.data.recall.registry import TASKS, build_task
from zoo.evaluation.cell_task import CellTask, Questions
from zoo.evaluation.run import OpenedRun


@dataclass(frozen=True)
class RecallEvaluation(CellTask):
    """A task that is generated: one of :data:`zoo.data.recall.registry.TASKS`.

    Attributes:
        variants: names of the task's variants, None for all. options: of the task, on top of each variant's.
    """

    variants: Sequence[str] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def questions(self, run: OpenedRun, encoder: Encoder) -> Mapping[str, Questions]:
        """One task per variant.

        Raises:
            RecallError: on an unknown variant or option.
        """
        names = self.variants if self.variants is not None else list(TASKS[self.name].VARIANTS)
        return {name: build_task(self.name, name, **self.options) for name in names}
