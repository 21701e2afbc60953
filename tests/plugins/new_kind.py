"""A package from outside with a task of a new kind: one file and one YAML, with metric, units, table and pictures."""

NAME = "zoo_edits"

FILES = {
    f"{NAME}/configs/task/edits.yaml": "# Tokens of made-up strings that a model would hardly write.\n"
    "name: edits\ntokens: 12\nstrings: 9\nfresh: false\n",
    f"{NAME}/__init__.py": '''
import math

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.table import Table

from zoo.evaluation.results.metrics import Metric
from zoo.evaluation.results.models import Record
from zoo.evaluation.results.statistics import bootstrap_mean
from zoo.evaluation.tasks.base import Outcome, Task
from zoo.evaluation.tasks.result_kind import Reported, ResultKind, Unit
from zoo.registry import METRICS, TASKS
from zoo.schema import Positive, option


@METRICS.register("edits")
class Edits(Metric):
    """Tokens of a string that a model would hardly write."""

    label, bounds, higher_is_better, main = "edits per string", (0.0, math.inf), False, True


class EditResults(ResultKind):
    """Edits of strings."""

    def units(self, record, samples):
        for line in samples:
            yield Unit(line["string"], None, float(line["wrong"]))

    def table(self, written):
        table = Table("strings of tokens", "edits to make", title=written.title)
        for record in written.records:
            table.add_row(str(record.length), f"{record.value:.2f}")
        return table

    def lines(self, written):
        yield f"{len(written.samples)} strings were made up"

    def draw(self, written, file, history):
        yield _bars(file, [(written.results.model.name, written)])

    def draw_runs(self, runs, file):
        yield _bars(file, runs)

    def reported(self, record, written):
        return Reported(f"edits of {record.length} tokens", headline=True, group="strings to mend")


def _bars(file, runs):
    figure = Figure()
    figure.subplots().bar([label for label, _ in runs], [written.records[0].value for _, written in runs])
    figure.savefig(file)
    return file


@TASKS.register("edits")
class EditsTask(Task):
    """Tokens of made-up strings that a model would hardly write."""

    kind = EditResults()

    tokens: Positive = option("tokens of a string", default=12)
    strings: Positive = option("strings that are made up", default=9)

    def evaluate(self, subject, seed, keep):
        ids = torch.from_numpy(np.random.default_rng(seed).integers(0, 200, (self.strings, self.tokens)))

        def ask():
            with torch.no_grad():
                logits = subject.decoder(ids.to(subject.device))[:, :-1].cpu()
            ahead = (logits > logits.gather(2, ids[:, 1:, None])).sum(2)  # tokens that are likelier than the right one
            return {"wrong": (ahead >= 100).sum(1).tolist()}

        wrong = keep(["edits", seed, self.tokens, self.strings], ask)["wrong"]
        found = bootstrap_mean(np.array(wrong), seed)
        record = Record(
            task="edits",
            variant="made up",
            length=self.tokens,
            depth=None,
            metric="edits",
            value=found.value,
            ci95=found.ci95,
            n=len(wrong),
            unit="string",
            chance=None,
            higher_is_better=False,
        )
        samples = [{"string": f"string {number}", "wrong": count} for number, count in enumerate(wrong)]
        return Outcome(("edits",), "edits", self.protocol() | {"seed": seed}, [record], samples)
''',
}


def write_package(folder):
    """The package in a folder, which is returned."""
    for file, text in FILES.items():
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.lstrip(), encoding="utf-8")
    return folder
