"""The task "lm_eval": tasks of lm-evaluation-harness, by name or from local YAML files."""

from __future__ import annotations

import difflib
import hashlib
import sys
import time
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Gt
from pydantic import AfterValidator

from zoo.config import ConfigError
from zoo.data import DataError
from zoo.evaluation.lm_eval.records import as_json, make_records, make_samples
from zoo.evaluation.lm_eval.results import HarnessResults
from zoo.evaluation.tasks.base import Folders, Keep, Outcome, Role, Task, Words, make_anew
from zoo.paths import expand
from zoo.registry import TASKS
from zoo.runs.file_names import path_part
from zoo.runs.subject import Subject
from zoo.schema.base import Count, Flag, Positive, option

if TYPE_CHECKING:
    from zoo.evaluation.lm_eval.model import ZooLM

KEPT_APART = ("samples", "pretty_env_info")  # in the samples file; and in the section "run", as far as it matters
LONGEST = 80  # characters of task names in a file name


def _share_or_count(limit: float) -> float:
    if limit > 1 and limit % 1:
        raise ValueError(f"task.limit={limit}: expected a number of samples, or a share of them below 1.")
    return limit if limit < 1 else int(limit)


@TASKS.register("lm_eval")
class LmEvalTask(Task):
    """Tasks of lm-evaluation-harness, scored by :class:`zoo.evaluation.lm_eval.model.ZooLM`."""

    kind = HarnessResults()

    names: Annotated[Words, Role.PLACED] = option(
        "tasks, groups, tags or task YAML files, as in task.names=[piqa,wikitext]", default=[]
    )
    include_path: Annotated[Folders | None, Role.PLACED] = option(
        "folder, or list of them, with task YAML files of your own", default=None
    )
    builtin_tasks: Annotated[Flag, Role.SPEED] = option(
        "whether the harness's own tasks can be named; false starts faster", default=True
    )
    limit: Annotated[float, Gt(0), AfterValidator(_share_or_count)] | None = option(
        "samples of each task, or their share if below 1; null: all", default=None
    )
    num_fewshot: Count | None = option("examples before each sample; null: as the task says", default=None)
    gen_kwargs: Annotated[dict[str, Any] | None, Role.PLACED] = option(
        "replaces generation options of the tasks, as in +task.gen_kwargs.max_gen_toks=32", default=None
    )
    max_length: Positive | None = option("tokens of context; null: the length of training", default=None)
    batch_tokens: Annotated[Positive, Role.SPEED] = option(
        "tokens of a forward pass; no influence on the result", default=8_192
    )
    document_token: Annotated[Flag, Role.PLACED] = option(
        "contexts begin with the document token, as documents did in training", default=True
    )
    bootstrap_iters: Annotated[Count, Role.PLACED] = option(
        "resamples of the harness's own standard errors; 0: none", default=1_000
    )

    def check(self, subject: Subject, seed: int) -> None:
        """Checks the options and loads the tasks, which the harness caches."""
        names = self._check()
        _model_class()
        with redirect_stdout(sys.stderr):
            self._load(names)

    def evaluate(self, subject: Subject, seed: int, keep: Keep = make_anew) -> Outcome:
        """Runs the tasks in the harness.

        Raises:
            ConfigError: if the package is not installed, or on an unknown task or an option out of range.
            DataError: if the data of a task cannot be loaded.
        """
        names = self._check()
        model = self._model(subject, seed, keep)
        begun = time.monotonic()
        results = self._run(model, names, seed)
        seconds = round(time.monotonic() - begun, 3)
        return Outcome(
            name=("lm_eval", _listed(names)),
            title=f"lm_eval: {', '.join(names)}",
            protocol=self._describe(model, names, results),
            records=make_records(results, model.max_length, seed, seconds),
            samples=make_samples(results),
            warnings=self._warnings(subject, model),
        )

    def _check(self) -> list[str]:
        if not self.names:
            raise ConfigError("task.names is empty: expected tasks of lm-evaluation-harness, as in task.names=[piqa].")
        return self.names

    def _model(self, subject: Subject, seed: int, keep: Keep) -> ZooLM:
        return _model_class()(subject, self.max_length, self.batch_tokens, self.document_token, seed, keep)

    def _run(self, model: ZooLM, names: list[str], seed: int) -> dict[str, Any]:
        from lm_eval import simple_evaluate

        with redirect_stdout(sys.stderr):  # where the harness prints is not where eval.py's table goes
            manager, tasks = self._load(names)
            results = simple_evaluate(
                model,
                tasks=tasks,
                task_manager=manager,
                num_fewshot=self.num_fewshot,
                limit=self.limit,
                gen_kwargs=dict(self.gen_kwargs) if self.gen_kwargs else None,
                bootstrap_iters=self.bootstrap_iters,
                random_seed=seed,
                numpy_random_seed=seed,
                torch_random_seed=seed,
                fewshot_random_seed=seed,
            )
        return dict(results)

    def _load(self, names: list[str]) -> tuple[Any, list[Any]]:
        """The harness's task manager, and the groups and single tasks that the names stand for."""
        from lm_eval.tasks import TaskManager

        folders = [str(expand(folder)) for folder in self.include_path or []]
        manager = TaskManager(include_path=folders, include_defaults=self.builtin_tasks)
        for name in names:
            if name not in manager.all_tasks and not name.endswith((".yaml", ".yml")):
                near = difflib.get_close_matches(name, manager.all_tasks, 5)
                hint = f"did you mean {', '.join(near)}?" if near else "lm-eval ls tasks lists those of the harness."
                raise ConfigError(f"task.names has {name!r}, which is no task of lm-evaluation-harness: {hint}")
        try:
            loaded = manager.load(names)
        except Exception as error:  # datasets, its Hub client and the tasks' own code raise errors of every kind
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise DataError(
                f"{', '.join(names)} of lm-evaluation-harness could not be loaded ({reason}): check the network, or "
                "name tasks over local data with task.include_path."
            ) from error
        groups = loaded.get("groups", {})
        inner = {name for group in groups.values() for name in group.child_names}
        grouped = {task.task_name for group in groups.values() for task in group.get_all_tasks()}
        tasks = [task for name, task in loaded["tasks"].items() if name not in grouped]
        return manager, [group for name, group in groups.items() if name not in inner] + tasks

    def _describe(self, model: ZooLM, names: list[str], results: dict[str, Any]) -> dict[str, Any]:
        return {
            "tasks": names,
            "limit": self.limit,
            "num_fewshot": self.num_fewshot,
            "gen_kwargs": as_json(self.gen_kwargs),
            "max_length": model.max_length,
            "document_token": self.document_token,
            "requests": dict(model.counts),
            "lm_eval_version": results["lm_eval_version"],
            "lm_eval": as_json({key: value for key, value in results.items() if key not in KEPT_APART}),
        }

    def name_parts(self, subject: Subject) -> list[str]:
        parts = self.changed() + [path_part(folder) for folder in self.include_path or ()]
        if self.gen_kwargs:
            parts.append("-".join(f"{name}{value}" for name, value in self.gen_kwargs.items()))
        return parts + ([] if self.document_token else ["no_document_token"])

    def _warnings(self, subject: Subject, model: ZooLM) -> list[str]:
        warnings = model.warnings()
        if self.limit is not None:
            warnings.append(f"Only a part of each task was evaluated (limit={self.limit}).")
        if model.max_length > subject.train_length:
            warnings.append(
                f"Contexts of up to {model.max_length} tokens are longer than those of training "
                f"({subject.train_length})."
            )
        return warnings


def _listed(names: list[str]) -> str:
    """Names of tasks, shortened where they are many."""
    listed = "-".join(names)
    if len(listed) <= LONGEST:
        return listed
    return f"{names[0][:LONGEST]}-and-{len(names) - 1}-{hashlib.sha256(listed.encode()).hexdigest()[:8]}"


def _model_class() -> type[ZooLM]:
    try:
        from zoo.evaluation.lm_eval.model import ZooLM
    except ModuleNotFoundError as error:
        raise ConfigError(str(error)) from error
    return ZooLM
