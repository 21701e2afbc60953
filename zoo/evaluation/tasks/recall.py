"""Evaluation on generated recall tasks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from zoo.data.recall.build import build_task
from zoo.data.recall.encoder import Encoder
from zoo.evaluation.tasks.base import Role, Words
from zoo.evaluation.tasks.cell_task import CellTask, Questions
from zoo.registry import RECALL_TASKS, TASKS
from zoo.runs.subject import Subject
from zoo.schema.base import option


class RecallEvaluation(CellTask):
    """Evaluation on a generated recall task: one of :data:`zoo.registry.RECALL_TASKS`."""

    variants: Annotated[Words | None, Role.NAMED] = option("variants of the task; null: all", default=None)
    options: Annotated[dict[str, Any], Role.PLACED] = option(
        "options of the task, on top of each variant's, as in +task.options.keys=8", default={}
    )

    def model_post_init(self, context: Any) -> None:
        """Builds the variants, so that invalid options are refused at once."""
        super().model_post_init(context)
        self._made()

    def questions(self, subject: Subject, encoder: Encoder) -> Mapping[str, Questions]:
        """Returns one recall task per variant."""
        return self._made()

    def places(self) -> list[str]:
        """Returns the options of the recall task itself."""
        return [f"{key}{value}" for key, value in self.options.items()]

    def _made(self) -> dict[str, Questions]:
        names = self.variants if self.variants is not None else list(RECALL_TASKS.get(self.name).VARIANTS)
        return {name: build_task(self.name, name, **self.options) for name in names}


TASKS.include(RECALL_TASKS, RecallEvaluation)
