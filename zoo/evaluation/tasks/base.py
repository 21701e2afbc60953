"""Tasks by name: what eval.py can ask of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Protocol

from annotated_types import MinLen
from pydantic import BeforeValidator, ConfigDict, ValidationError

from zoo.config import ConfigError
from zoo.evaluation.results.records import Record
from zoo.options.programs import composed
from zoo.plugins import config_files
from zoo.registry import TASKS
from zoo.runs.loaded_run import OpenedRun
from zoo.schema.arguments import option_lines
from zoo.schema.base import Flag, Options, PathText, Positive, Text, option
from zoo.schema.messages import explain, sentence, suggest

PATH = "task"  # where the options of a task lie


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


def listed(value: Any) -> Any:
    """A value alone is a list of one: task.lengths=512 is as good as task.lengths=[512]."""
    if isinstance(value, tuple):
        return list(value)
    return [value] if isinstance(value, (str, int, float)) and not isinstance(value, bool) else value


Lengths = Annotated[list[Positive], BeforeValidator(listed), MinLen(1)]
Words = Annotated[list[Text], BeforeValidator(listed)]
Folders = Annotated[list[PathText], BeforeValidator(listed)]


class TaskOptions(Options):
    """Options of a task, checked when it is made.

    Args:
        path: where the options lie, for messages: ``task``, or ``task.members.NAME``.
        given: the options.

    Raises:
        ConfigError: on an unknown option, or a value that is not of its type or out of range.
    """

    model_config = ConfigDict(frozen=True)

    def __init__(self, path: str = PATH, /, **given: Any) -> None:
        try:
            super().__init__(**given)
        except ValidationError as error:
            raise ConfigError(explain(type(self), given, error, path)) from None


class TextTask(TaskOptions):
    """What tasks share that score the text of a split, or other text."""

    split: Literal["train", "validation", "test"] = option("split of the run's data", default="test")
    path: PathText | None = option(
        "other local text to evaluate: .txt, .md, .jsonl or .parquet; a file, folder or glob, which is read whole",
        default=None,
    )
    text_column: Text = option("column of jsonl and parquet files at path", default="text")
    batch_tokens: Positive = option("tokens of a forward pass; no influence on the result", default=8_192)
    max_documents: Positive | None = option("only the first so many documents that can be used", default=None)
    fresh: Flag = option("score again what an earlier evaluation has scored", default=False)


class Task(Protocol):
    """Something a run is asked; options are the fields of the class and the keys of configs/task/NAME.yaml."""

    def check(self, run: OpenedRun, seed: int) -> None:
        """Raise what :meth:`evaluate` would raise of the run's data and of the options, without asking the decoder."""
        ...

    def evaluate(self, run: OpenedRun, seed: int) -> Outcome:
        """Records and what belongs to them; ``seed`` decides every random choice."""
        ...


def build_task(options: Mapping[str, Any], path: str = PATH) -> Any:
    """The task that ``options["name"]`` names, with the other options as its fields: a Task, or a Suite of some.

    Args:
        options: by name.
        path: where they lie, for messages.

    Raises:
        ConfigError: on an unknown name or option, or a value that is not of its type or out of range.
    """
    given = dict(options)
    name = given.pop("name", None)
    task = task_class(name, f"{path}.name")
    return task(path, **given, **({"name": name} if "name" in task.model_fields else {}))


def task_help() -> list[str]:
    """Lines about every task and its options, with the defaults of configs/task."""
    lines = []
    for name in TASKS:
        file = config_files("task").get(name)
        text = file.read_text(encoding="utf-8").removeprefix("# ") if file else task_class(name).__doc__ or ""
        about = text.partition("\n")[0]
        defaults = composed("eval", [f"task={name}"])["task"]
        lines += ["", f"task={name}: {about}", "", *option_lines(task_class(name), defaults, f"{PATH}.")]
    return lines


def task_class(name: Any, path: str = PATH) -> type[TaskOptions]:
    """The class of the task called ``name``.

    Args:
        name: a registered one.
        path: of the option that names it, for messages.

    Raises:
        ConfigError: if there is none, or if it is none of this kind.
    """
    if name not in TASKS:
        raise ConfigError(f"{path}={name}: unknown task; {sentence(suggest(str(name), TASKS))}")
    found: type[TaskOptions] = TASKS.get(name)
    if not (isinstance(found, type) and issubclass(found, TaskOptions)):
        raise ConfigError(f"{path}={name}: {found} is no TaskOptions, which a task has to be.")
    return found
