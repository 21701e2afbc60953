"""Base classes of tasks: options, questions to a model, and the kind of their results."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Annotated, Any, ClassVar, Literal, Protocol

from annotated_types import MinLen
from pydantic import BeforeValidator, ConfigDict, ValidationError

from zoo.config import ConfigError
from zoo.evaluation.results.models import Record
from zoo.evaluation.tasks.result_kind import ResultKind
from zoo.options.programs import composed
from zoo.plugins import config_files
from zoo.registry import TASKS
from zoo.runs.file_names import changed_options, path_part, plain, task_defaults
from zoo.runs.subject import Subject
from zoo.schema.arguments import option_lines
from zoo.schema.base import Flag, Options, PathText, Positive, Text, option
from zoo.schema.messages import explain, sentence, suggest

PATH = "task"  # where the options of a task lie


class Role(Enum):
    """Role of an option in the name of a result file; an annotation, as ``Annotated[Flag, Role.SPEED]``.

    Attributes:
        CHANGED: it affects the result: the name has its key and value unless it has its default. The role of all
            options without one.
        NAMED: it affects the result: the name has its value alone, if there is one.
        PLACED: it affects the result, and the task itself puts it into the name.
        SPEED: it has no influence on the numbers, and is neither in the name nor in the protocol.
    """

    CHANGED = "changed"
    NAMED = "named"
    PLACED = "placed"
    SPEED = "speed"


@dataclass(frozen=True)
class Outcome:
    """Outcome of a task.

    Attributes:
        name: first parts of the result file's name: the task, and what was read.
        title: title of the table and plot.
        protocol: everything that two comparable results must share.
        records: the numbers.
        samples: one line per document or sample.
        warnings: sentences for the reader.
        bytes_per_token: bytes per token of the evaluated text, where they are known.
    """

    name: tuple[str, ...]
    title: str
    protocol: dict[str, Any]
    records: list[Record]
    samples: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    bytes_per_token: float | None = None


class Keep(Protocol):
    """Protocol of stores for the parts of an evaluation, so that one that was killed resumes where it stopped."""

    def __call__(
        self, key: Any, make: Callable[[], dict[str, Any]], found: Callable[[], None] = lambda: None, /
    ) -> dict[str, Any]:
        """The part that ``key`` names, made unless it is kept, with the ``seconds`` that making it took.

        Args:
            key: all that the part depends on but the model, as plain values.
            make: its content, as plain values.
            found: called instead if it is kept.
        """
        ...


def listed(value: Any) -> Any:
    """Wraps a single value in a list: task.lengths=512 is as good as task.lengths=[512]."""
    if isinstance(value, tuple):
        return list(value)
    return [value] if isinstance(value, (str, int, float)) and not isinstance(value, bool) else value


Lengths = Annotated[list[Positive], BeforeValidator(listed), MinLen(1)]
Words = Annotated[list[Text], BeforeValidator(listed)]
Folders = Annotated[list[PathText], BeforeValidator(listed)]


def make_anew(
    key: Any, make: Callable[[], dict[str, Any]], found: Callable[[], None] = lambda: None, /
) -> dict[str, Any]:
    """Computes a part without storing it; a :class:`Keep`."""
    begun = time.monotonic()
    return {**make(), "seconds": time.monotonic() - begun}


class TaskOptions(Options):
    """Options of a task or of a suite of tasks, checked by the constructor.

    Args:
        path: prefix of the options in messages: ``task``, or ``task.members.NAME``.
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


class Task(TaskOptions):
    """Base of tasks; options are the fields of the class and the keys of configs/task/NAME.yaml.

    Attributes:
        kind: units, tables, plots and report lines of its results.
    """

    kind: ClassVar[ResultKind] = ResultKind()

    fresh: Annotated[Flag, Role.SPEED] = option("score again what an earlier evaluation has scored", default=False)

    def check(self, subject: Subject, seed: int) -> None:
        """Raises what :meth:`evaluate` would raise about the text and the options, without running the decoder."""

    def evaluate(self, subject: Subject, seed: int, keep: Keep = make_anew) -> Outcome:
        """Evaluates a model on the task.

        Args:
            subject: the model.
            seed: seed of every random choice.
            keep: computes parts of the outcome, or returns stored ones.
        """
        raise NotImplementedError

    def name_parts(self, subject: Subject) -> list[str]:
        """Returns the parts of the result file's name for the options, so that one result does not replace another."""
        return self.named() + self.changed()

    def named(self) -> list[str]:
        """Returns the values of the options of role NAMED."""
        return [plain(value) for value in self.of_role(Role.NAMED).values() if value is not None]

    def changed(self) -> list[str]:
        """Returns ``NAMEvalue`` of the options that differ from the default, that of the YAML file if there is one."""
        options = self.of_role(Role.CHANGED)
        defaults = {name: type(self).model_fields[name].default for name in options}
        return changed_options(options, defaults | task_defaults(str(getattr(self, "name", ""))))

    def of_role(self, role: Role) -> dict[str, Any]:
        """Returns the options of a role, by name."""
        fields = type(self).model_fields.items()
        roles = {name: next((m for m in f.metadata if isinstance(m, Role)), Role.CHANGED) for name, f in fields}
        return {name: getattr(self, name) for name, found in roles.items() if found is role}

    def protocol(self) -> dict[str, Any]:
        """Returns the options that affect the result, as in a result file."""
        return self.model_dump(exclude=set(self.of_role(Role.SPEED)))


class TaskSuite(TaskOptions):
    """Tasks that are evaluated one after the other, each with its own result file; impossible ones are left out."""

    def tasks(self) -> Iterator[tuple[str, Task]]:
        """Yields the tasks by name."""
        raise NotImplementedError


MAX_DOCUMENTS: Any = option("only the first so many documents that can be used", default=None)


class TextTask(Task):
    """Base of tasks that score the text of a split, or other text."""

    split: Annotated[Literal["train", "validation", "test"], Role.PLACED] = option(
        "split of the run's data", default="test"
    )
    path: Annotated[PathText | None, Role.PLACED] = option(
        "other local text to evaluate: .txt, .md, .jsonl or .parquet; a file, folder or glob, which is read whole",
        default=None,
    )
    text_column: Annotated[Text, Role.PLACED] = option("column of jsonl and parquet files at path", default="text")
    batch_tokens: Annotated[Positive, Role.SPEED] = option(
        "tokens of a forward pass; no influence on the result", default=8_192
    )

    def name_parts(self, subject: Subject) -> list[str]:
        column = changed_options({"text_column": self.text_column}, {"text_column": "text"})
        return super().name_parts(subject) + ([] if self.path is None else [path_part(self.path)]) + column


def build_task(options: Mapping[str, Any], path: str = PATH) -> Any:
    """Builds the task or suite that ``options["name"]`` names, with the other options as its fields.

    Args:
        options: options by name.
        path: prefix of the options in messages.

    Raises:
        ConfigError: on an unknown name or option, or a value that is not of its type or out of range.
    """
    given = dict(options)
    name = given.pop("name", None)
    task = task_class(name, f"{path}.name")
    return task(path, **given, **({"name": name} if "name" in task.model_fields else {}))


def task_help() -> list[str]:
    """Returns lines about every task and its options, with the defaults of configs/task."""
    lines = []
    for name in TASKS:
        file = config_files("task").get(name)
        text = file.read_text(encoding="utf-8").removeprefix("# ") if file else task_class(name).__doc__ or ""
        about = text.partition("\n")[0]
        defaults = composed("eval", [f"task={name}"])["task"]
        lines += ["", f"task={name}: {about}", "", *option_lines(task_class(name), defaults, f"{PATH}.")]
    return lines


def task_class(name: Any, path: str = PATH) -> type[TaskOptions]:
    """Returns the class of a task by name.

    Args:
        name: a registered name.
        path: prefix of the option that names it, for messages.

    Raises:
        ConfigError: if there is none, or if it is not a task.
    """
    if name not in TASKS:
        raise ConfigError(f"{path}={name}: unknown task; {sentence(suggest(str(name), TASKS))}")
    found: type[TaskOptions] = TASKS.get(name)
    if not (isinstance(found, type) and issubclass(found, (Task, TaskSuite))):
        raise ConfigError(f"{path}={name}: {found} is no Task, which a task has to be.")
    return found
