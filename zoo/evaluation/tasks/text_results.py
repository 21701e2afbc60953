"""Results of tasks that read whole texts: perplexity overall, by position, and by length of context."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from rich.table import Table

from zoo.evaluation.display.perplexity_plots import plot_context, plot_position
from zoo.evaluation.display.terminal_tables import number_table
from zoo.evaluation.display.training_plots import plot_documents, plot_training
from zoo.evaluation.results.metrics import metric_named
from zoo.evaluation.results.models import Record
from zoo.evaluation.tasks.result_kind import History, Reported, ResultKind, Unit, Written

BITS = "bits_per_byte"
RECALL, OTHER = "recall", "other"
PARTS = {RECALL: "tokens that repeat a bigram", OTHER: "other tokens"}


class TextResults(ResultKind):
    """Results over documents, whose bytes are the same for every tokenizer."""

    shared: ClassVar[tuple[str, ...] | None] = ("data_sha", "split", "window", "stride")
    of_tokens = False

    def table(self, written: Written) -> Table:
        """Returns a table of all numbers of the whole text; of parts of it only bits per byte."""
        records = written.records
        whole = records[0].variant if records else ""
        parts = {r.variant for r in records if r.metric == BITS and r.variant != whole}
        return number_table(written.title, [r for r in records if r.variant not in parts or r.metric == BITS])

    def lines(self, written: Written) -> Iterator[str]:
        """Describes how much was read, and how."""
        protocol = written.protocol
        count = protocol["documents"]
        yield f"{count:,} document{'s' * (count > 1)}, {protocol['bytes']:,} bytes, {protocol['tokens']:,} tokens"
        if "window" in protocol:
            yield f"windows of {protocol['window']:,} tokens, stride {protocol['stride']:,}"
        yield from super().lines(written)

    def units(self, record: Record, samples: Sequence[dict[str, Any]]) -> Iterator[Unit]:
        """Yields nothing: samples do not have the parts of a document's tokens."""
        return iter(())

    def reported(self, record: Record, written: Written) -> Reported | None:
        """Reports numbers below the headlines, which are those of the task perplexity."""
        found = super().reported(record, written)
        return found and Reported(found.label)


class PerplexityResults(TextResults):
    """Perplexity of a text: all of it, of the tokens that repeat a bigram, and of the others."""

    def units(self, record: Record, samples: Sequence[dict[str, Any]]) -> Iterator[Unit]:
        """Yields nats and bytes of documents: of all tokens, of recalled tokens, or of the others."""
        if record.metric != BITS or record.variant.startswith(f"{RECALL}-"):
            return
        for line in samples:
            nats, size = np.float64(line["nats"]), line["bytes"]  # None becomes NaN
            if record.variant in PARTS:
                recalled = np.float64(line["recall_nats"]), line["recall_bytes"]
                nats, size = recalled if record.variant == RECALL else (nats - recalled[0], size - recalled[1])
            yield Unit(line["id"], None, float(nats), size * math.log(2))

    def draw(self, written: Written, file: Path, history: History) -> Iterable[Path]:
        """Plots training with the held-out result as a line, and documents by size."""
        record = next((r for r in written.records if r.metric == BITS and r.value is not None), None)
        if record is None or record.value is None:
            return
        model = written.results.model.name
        curves, documents = file.with_suffix(".training.png"), file.with_suffix(".documents.png")
        yield from plot_training(curves, history(), f"{model}: training", {written.title: record.value})
        yield from plot_documents(documents, written.samples, f"{model}: {written.title}", record.value, record.ci95)

    def reported(self, record: Record, written: Written) -> Reported | None:
        """Reports the whole text on top, with its two parts in bits per byte, and parts by distance below."""
        found = super().reported(record, written)
        label = metric_named(record.metric).label
        if found is None or record.variant.startswith(f"{RECALL}-"):
            return found
        if record.variant not in PARTS:
            return Reported(f"{label}, {written.protocol.get('data', written.stem)}", headline=True)
        return Reported(f"{label}, {PARTS[record.variant]}", headline=True) if record.metric == BITS else found


class PositionResults(TextResults):
    """Perplexity by position in the document."""

    def draw(self, written: Written, file: Path, history: History) -> Iterable[Path]:
        """Plots loss by position."""
        model = written.results.model.name
        return plot_position(file, [(model, _plain(written))], f"{model}: {written.title}")

    def draw_runs(self, runs: Sequence[tuple[str, Written]], file: Path) -> Iterable[Path]:
        """Plots loss by position of several runs."""
        return plot_position(file, [(label, _plain(written)) for label, written in runs], runs[0][1].title)


class ContextResults(TextResults):
    """Perplexity of the same tokens by length of the context before them."""

    shared = ("data_sha", "split", "target")

    def units(self, record: Record, samples: Sequence[dict[str, Any]]) -> Iterator[Unit]:
        """Yields nats and bytes of spans; the spans of a document are drawn together."""
        if (record.variant, record.metric) == ("context", BITS):
            for line in samples:
                nats = np.float64(line["nats"][str(record.length)])  # None becomes NaN
                yield Unit(line["id"].rpartition(":")[0], line["id"], float(nats), line["bytes"] * math.log(2))

    def draw(self, written: Written, file: Path, history: History) -> Iterable[Path]:
        """Plots perplexity by context, and what each length gains."""
        model = written.results.model
        return plot_context(file, [(model.name, _plain(written))], f"{model.name}: {written.title}", model.train_len)

    def draw_runs(self, runs: Sequence[tuple[str, Written]], file: Path) -> Iterable[Path]:
        """Plots perplexity by context of several runs."""
        return plot_context(file, [(label, _plain(written)) for label, written in runs], runs[0][1].title)


def _plain(written: Written) -> list[dict[str, Any]]:
    return [record.model_dump() for record in written.records]
