"""Kinds of results, each with its units, tables, plots and report lines.

The programs that compare, print, draw and report ask the kind that a task has, never the name of the task.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from rich.table import Table

from zoo.evaluation.display.terminal_tables import number_table
from zoo.evaluation.results.metrics import metric_named
from zoo.evaluation.results.models import Record, Results
from zoo.evaluation.results.records import read_results, read_samples
from zoo.registry import TASKS, nothing_imported

History = Callable[[], list[dict[str, Any]]]


@dataclass(frozen=True)
class Unit:
    """One sample of a number, by which two runs are paired.

    Attributes:
        cluster: what the bootstrap draws as one, as a document.
        sample: identifies the sample in its cluster.
        value: value of the sample.
        weight: divisor, as bytes; the number is the sum of values over the sum of weights.
    """

    cluster: str
    sample: Any
    value: float
    weight: float = 1.0


@dataclass(frozen=True)
class Reported:
    """How the report of a sweep shows a number.

    Attributes:
        label: its name in tables.
        headline: whether it is shown on top.
        group: name of a group of numbers whose mean is shown too, as "answers right"; empty for none.
    """

    label: str
    headline: bool = False
    group: str = ""


class ResultKind:
    """A kind of results, by default a table of all numbers, pairs of samples that name the metric, and no plot.

    Attributes:
        shared: keys of the protocol that two results must share for their samples to be the same; None for all.
        of_tokens: whether another tokenizer has other samples, as for lengths in tokens.
    """

    shared: ClassVar[tuple[str, ...] | None] = None
    of_tokens: ClassVar[bool] = True

    def asked(self, protocol: dict[str, Any]) -> Any:
        """Returns the part of a protocol that identifies the samples."""
        return protocol if self.shared is None else [protocol.get(key) for key in self.shared]

    def units(self, record: Record, samples: Sequence[dict[str, Any]]) -> Iterator[Unit]:
        """Yields the samples that a number is computed from, in a fixed order; none if it is not made of samples.

        Args:
            record: the number.
            samples: all lines of the samples file.
        """
        for line in samples:
            if _is_part(line, record) and record.metric in line:
                value = line[record.metric]
                yield Unit(line["id"], line.get("depth"), float("nan") if value is None else float(value))

    def table(self, written: Written) -> Table:
        """Returns the table of numbers for the terminal."""
        return number_table(written.title, written.records)

    def lines(self, written: Written) -> Iterator[str]:
        """Yields the lines that are printed below the table."""
        first = next(iter(written.records), None)
        if first is not None and first.tok_s and first.wall_s is not None:
            yield f"{first.wall_s:,.1f} s, {first.tok_s:,.0f} tokens/s"

    def draw(self, written: Written, file: Path, history: History) -> Iterable[Path]:
        """Plots one result.

        Args:
            written: the result.
            file: file of the plot; :mod:`zoo.plotting` gives it a suffix for each format. Further plots have longer
                names beside it.
            history: returns the metrics of the run's training.

        Returns:
            The files that were written.
        """
        return ()

    def draw_runs(self, runs: Sequence[tuple[str, Written]], file: Path) -> Iterable[Path]:
        """Plots the results of several runs, each with its label, and returns the files, if any."""
        return ()

    def reported(self, record: Record, written: Written) -> Reported | None:
        """Returns how the report of a sweep shows a number; None where it does not."""
        metric = metric_named(record.metric)
        length = f", {record.length:,} tokens" if record.length else ""
        label = f"{record.task}, {record.variant}{length}: {metric.label or record.metric}"
        return Reported(label, headline=metric.main) if metric.reported else None


def _is_part(line: dict[str, Any], record: Record) -> bool:
    same = all(line.get(key, getattr(record, key)) == getattr(record, key) for key in ("variant", "length"))
    return same and record.depth in (None, line.get("depth"))


@dataclass(frozen=True)
class Written:
    """Results of an evaluation and their files.

    Attributes:
        stem: name of the result file without its suffix.
        title: title of tables and plots.
        results: content of the result file.
        samples: one line per document or sample.
        files: the result first, then plots.
        kind: kind of the task's results.
    """

    stem: str
    title: str
    results: Results
    samples: list[dict[str, Any]]
    files: list[Path]
    kind: ResultKind

    @property
    def records(self) -> list[Record]:
        """The numbers."""
        return self.results.results

    @property
    def protocol(self) -> dict[str, Any]:
        """Everything that two comparable results must share."""
        return self.results.protocol

    @property
    def warnings(self) -> list[str]:
        """Sentences for the reader."""
        return self.results.warnings


def kind_named(task: str) -> ResultKind:
    """Returns the kind of results of a task by name; the default for a task that is not registered."""
    with nothing_imported():
        found = TASKS.get(task) if task in TASKS else None
    kind = getattr(found, "kind", None)
    return kind if isinstance(kind, ResultKind) else ResultKind()


def read_evaluation(file: Path) -> Written:
    """Reads a result file with its samples, as :func:`zoo.evaluation.evaluate.evaluate_run` returned it.

    Samples that are damaged are left out.

    Raises:
        ResultError: if the file is damaged.
    """
    results = read_results(file)
    try:
        samples = read_samples(file)
    except (OSError, EOFError, ValueError):  # ValueError: of JSON and UTF-8
        samples = []
    kind = kind_named(results.results[0].task if results.results else "")
    return Written(file.stem, file.stem, results, samples, [file], kind)
