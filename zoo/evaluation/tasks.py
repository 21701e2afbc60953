"""Tasks by name: what eval.py can ask of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from importlib import import_module
from typing import Any, Protocol

from zoo.config import ConfigError
from zoo.evaluation.results import Record
from zoo.evaluation.run import OpenedRun


@dataclass(frozen=True)
class Outcome:
    """What a task found.

    Attributes:
        stem: name of the result file without its suffix. title: of the table and plot.
        protocol: everything that two comparable results must share.
        records: the numbers. samples: one line per document or sample. warnings: sentences for the reader.
        bytes_per_token: of the evaluated text, where that is known.
    """

    stem: str
    title: str
    protocol: dict[str, Any]
    records: list[Record]
    samples: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    bytes_per_token: float | None = None


class Task(Protocol):
    """Something a run is asked; options are the fields of the class and the keys of configs/task/NAME.yaml."""

    def evaluate(self, run: OpenedRun, seed: int) -> Outcome:
        """Records and what belongs to them; ``seed`` decides every random choice."""
        ...


TASKS = {
    "offline": "suite:Suite",
    "perplexity": "perplexity_task:PerplexityTask",
    "perplexity_position": "perplexity_position:PerplexityPositionTask",
    "perplexity_context": "perplexity_context:PerplexityContextTask",
    **dict.fromkeys(
        ("mqar", "passkey", "kv", "niah", "vt", "cwe", "fwe", "babi"),
        "recall_task:RecallEvaluation",
    ),
    "qa": "qa_task:QAEvaluation",
    "hub": "qa_task:HubSuite",
    "lm_eval": "lm_eval_task:LmEvalTask",
}


def build_task(options: Mapping[str, Any]) -> Any:
    """The task that ``options["name"]`` names, with the other options as its fields: a Task, or a Suite of some.

    Raises:
        ConfigError: on an unknown name or option.
    """
    given = dict(options)
    name = given.pop("name", None)
    if name not in TASKS:
        raise ConfigError(f"task.name={name!r}: expected one of {', '.join(TASKS)}.")
    module, _, kind = TASKS[name].partition(":")
    task = getattr(import_module(f"zoo.evaluation.{module}"), kind)
    known = [option.name for option in fields(task)]
    unknown = [key for key in given if key not in known]
    if unknown:
        raise ConfigError(f"task.{unknown[0]} is not an option of {name}: expected one of {', '.join(known)}.")
    return task(**given, **({"name": name} if "name" in known else {}))
