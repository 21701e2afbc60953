"""A package from outside as a user would write it: an attention, a source, a task, an optimizer and a logger."""

from pathlib import Path

NAME = "zoo_outside"

MODULES = {
    "__init__.py": "from . import attention, data, logger, optimizer, task\n",
    "attention.py": '''
"""Linear attention whose output is scaled."""

from typing import Annotated

from annotated_types import Gt

from zoo import mixers
from zoo.mixers.linear import LinearAttention


@mixers.register("outside_linear")
class OutsideLinear(LinearAttention):
    def __init__(
        self, width: int, heads: int, depth: int = 1, layer: int = 0, strength: Annotated[float, Gt(0)] = 0.5
    ) -> None:
        super().__init__(width=width, heads=heads, depth=depth, layer=layer)
        self.strength = strength

    def mix(self, q, k, v, call):
        return self.strength * super().mix(q, k, v, call)
''',
    "data.py": """
from zoo.data import Document
from zoo.data.documents import digest_documents
from zoo.registry import SOURCES

WORDS = ("one", "two", "three", "four", "five", "six", "seven")


@SOURCES.register("outside_counting")
class Counting:
    def __init__(self, documents_per_split: int = 20) -> None:
        self.name, self.count = "outside_counting", documents_per_split

    def documents(self, split: str):
        for number in range(self.count):
            words = (WORDS[(number * step) % 7] for step in range(1, 60))
            yield Document(f"{split}-{number}", f"{split} " + " ".join(words))

    def fingerprint(self, split: str) -> str:
        return digest_documents(self.documents(split))
""",
    "task.py": '''
from zoo.evaluation.results.models import Record
from zoo.evaluation.tasks.base import Outcome, Task
from zoo.registry import TASKS
from zoo.schema import Positive, option


@TASKS.register("outside_copy")
class Copy(Task):
    """Whether the most likely token is the one before."""

    tokens: Positive = option("tokens of the text", default=8)

    def evaluate(self, subject, seed: int, keep) -> Outcome:
        import torch

        ids = torch.arange(self.tokens, device=subject.device)[None] % 50
        with torch.no_grad():
            right = (subject.decoder(ids).argmax(-1) == ids).float().mean().item()
        record = Record(
            task="outside_copy",
            variant="default",
            length=self.tokens,
            depth=None,
            metric="exact_match",
            value=right,
            ci95=None,
            n=self.tokens,
            unit="sample",
            chance=0.0,
            higher_is_better=True,
        )
        return Outcome(("outside_copy",), "copies", self.protocol(), [record])
''',
    "optimizer.py": """
from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Gt
from zoo.registry import OPTIMIZERS


@OPTIMIZERS.register("outside_sgd")
def sgd(decoder: torch.nn.Module, lr: Annotated[float, Gt(0)] = 0.05, nesterov: bool = False) -> torch.optim.Optimizer:
    return torch.optim.SGD(decoder.parameters(), lr=lr, momentum=0.9, nesterov=nesterov)
""",
    "logger.py": """
from __future__ import annotations

from pathlib import Path
from typing import Any

from zoo.registry import LOGGERS


@LOGGERS.register("outside_lines")
def lines(folder: Path, settings: dict[str, Any], file: str = "lines.txt"):
    from lightning.pytorch.loggers import Logger

    class Lines(Logger):
        name, version = "lines", ""

        def log_hyperparams(self, params, *args, **kwargs):
            pass

        def log_metrics(self, metrics, step=None):
            with (folder / file).open("a") as stream:
                stream.write(f"{step} {sorted(metrics)}\\n")

    return Lines()
""",
}


def write_package(folder: Path, name: str = NAME) -> Path:
    """The package in a folder, which is returned."""
    for file, text in MODULES.items():
        path = folder / name / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.lstrip(), encoding="utf-8")
    return folder
