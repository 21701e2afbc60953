"""Results of tasks with questions: the share of right answers, and their likelihood."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from rich.table import Table

from zoo.evaluation.display.recall_plots import RANK, RIGHT, plot_costs, plot_depths
from zoo.evaluation.display.terminal_tables import cell_table
from zoo.evaluation.results.models import Record
from zoo.evaluation.scoring.answer_records import GENERATED, line_values
from zoo.evaluation.tasks.result_kind import History, Reported, ResultKind, Unit, Written

NO_CONTEXT, ZERO_LENGTH = "/no_context", "/zero_length"
COLUMNS = ("exact_match", "accuracy", "rank_accuracy", "rank_accuracy_per_token", "answer_nll", "f1")


class AnswerResults(ResultKind):
    """Results over samples with answers, in cells of a variant, a length and a depth."""

    shared: ClassVar[tuple[str, ...] | None] = ("haystack_sha", "split", "seed")

    def units(self, record: Record, samples: Sequence[dict[str, Any]]) -> Iterator[Unit]:
        """Yields the samples of a cell; those of one id, asked at several depths, are drawn as one."""
        metric = record.metric + GENERATED * record.variant.endswith(GENERATED)
        place = record.variant.removesuffix(GENERATED), record.length
        for line in samples:
            here = (line.get("variant"), line.get("length")) == place
            if here and record.depth in (None, line["depth"]) and metric in (values := line_values(line)):
                yield Unit(line["id"], line["depth"], values[metric])

    def table(self, written: Written) -> Table:
        """Returns a table with one line per variant and length."""
        adapted = " (trained on recall tasks)" if written.results.model.adapted else ""
        return cell_table(f"{written.title}{adapted}", written.records, COLUMNS)

    def lines(self, written: Written) -> Iterator[str]:
        """Explains the numbers in brackets."""
        if any(record.metric == "rank_accuracy" for record in written.records):
            yield "in brackets: by chance"

    def draw(self, written: Written, file: Path, history: History) -> Iterable[Path]:
        """Plots accuracy for depth by length, or by length."""
        records = [record.model_dump() for record in written.records]
        return plot_depths(file, records, f"{written.results.model.name}: {written.title}")

    def draw_runs(self, runs: Sequence[tuple[str, Written]], file: Path) -> Iterable[Path]:
        """Plots accuracy against the bytes of the cache, of several runs."""
        contents = [(label, written.results.to_dict()) for label, written in runs]
        return plot_costs(file, contents, f"{runs[0][1].title}: accuracy and cache")

    def reported(self, record: Record, written: Written) -> Reported | None:
        """Reports accuracy and ranks in groups, answers by generation or without filler alone, and no baselines."""
        found = super().reported(record, written)
        if found is None or record.variant.endswith((NO_CONTEXT, ZERO_LENGTH)):
            return None
        group = "" if "/" in record.variant else _group(record, written)
        return Reported(found.label, group=group)


def _group(record: Record, written: Written) -> str:
    """Of single answers where a variant has several, else of whole samples."""
    several = any(r.metric == "accuracy" and r.variant == record.variant for r in written.records)
    right = "accuracy" if several else "exact_match"
    return {right: RIGHT, "rank_accuracy": RANK}.get(record.metric, "")
