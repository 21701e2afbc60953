"""Results of lm-evaluation-harness: numbers of many tasks, whose samples have the harness's own form."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from rich.table import Table

from zoo.evaluation.results.models import Record
from zoo.evaluation.tasks.answer_results import AnswerResults
from zoo.evaluation.tasks.result_kind import History, ResultKind, Unit, Written


class HarnessResults(AnswerResults):
    """Results of the harness: grouped as other answers are, but its samples are not paired."""

    shared: ClassVar[tuple[str, ...] | None] = ()

    def units(self, record: Record, samples: Sequence[dict[str, Any]]) -> Iterator[Unit]:
        """None: the metric of a sample stands in the harness's own words."""
        return iter(())

    def table(self, written: Written) -> Table:
        """All numbers."""
        return ResultKind.table(self, written)

    def lines(self, written: Written) -> Iterator[str]:
        """The time that was taken."""
        return ResultKind.lines(self, written)

    def draw(self, written: Written, file: Path, history: History) -> Iterable[Path]:
        """Nothing: its tasks have no lengths."""
        return ()
