"""Results of lm-evaluation-harness: numbers of many tasks, whose samples have the harness's own format."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from rich.table import Table

from zoo.evaluation.results.models import Record
from zoo.evaluation.tasks.answer_results import AnswerResults
from zoo.evaluation.tasks.result_kind import History, ResultKind, Unit, Written


class HarnessResults(AnswerResults):
    """Results of the harness, grouped like other answers, but without pairs of samples."""

    shared: ClassVar[tuple[str, ...] | None] = ()

    def units(self, record: Record, samples: Sequence[dict[str, Any]]) -> Iterator[Unit]:
        """Yields nothing: samples of the harness have no common metric."""
        return iter(())

    def table(self, written: Written) -> Table:
        """Returns a table of all numbers."""
        return ResultKind.table(self, written)

    def lines(self, written: Written) -> Iterator[str]:
        """Yields the time that was taken."""
        return ResultKind.lines(self, written)

    def draw(self, written: Written, file: Path, history: History) -> Iterable[Path]:
        """Draws nothing: tasks of the harness have no lengths."""
        return ()
