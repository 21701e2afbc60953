"""From a command line such as ``-m sweep=hybrid_ratio seed=0,1 model=125m`` to every run of the sweep."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from zoo.config import CONFIGS, ConfigError, to_dict
from zoo.options.choices import choices, register_choices
from zoo.paths import command, take_paths
from zoo.plugins import imported_plugins
from zoo.sweeps.arms import RULES, Arm, layer_names, listed_arms, merge, override_name, parse, without_replaced
from zoo.sweeps.evaluations import EvalTask, give_options
from zoo.sweeps.ledger import config_key, now

FLAGS = ("-m", "--multirun")
SHOWS = ("-h", "--help", "--hydra-help", "--cfg", "-c", "--info", "-i", "--version", "--shell-completion", "-sc")
SCHEMA = "zoo-sweep/1"
SIZED = ("attention", "schedule", "model", "mixers")  # parts of a configuration that costs depend on


@dataclass(frozen=True)
class Run:
    """One arm with one seed. ``folder`` is relative to the sweep's; ``key`` is that of the resolved ``config``."""

    arm: str
    seed: int
    overrides: list[str]
    config: DictConfig
    key: str

    @property
    def folder(self) -> str:
        """Where the run lies."""
        return f"arms/{self.arm}/seed-{self.seed}"

    def __str__(self) -> str:
        return f"{self.arm} seed {self.seed}"


@dataclass(frozen=True)
class Plan:
    """A sweep.

    Attributes:
        options: those of configs/sweep/. runs: in the order in which they are started.
        given: overrides of every arm that the command line names itself.
    """

    options: dict[str, Any]
    command: str
    folder: Path
    arms: list[Arm]
    reference: str
    seeds: list[int]
    tasks: list[EvalTask]
    runs: list[Run]
    given: list[str]

    def describe(self) -> dict[str, Any]:
        """Content of sweep.json."""
        return {
            "schema": SCHEMA,
            "name": self.options["name"],
            "question": self.options["question"],
            "command": self.command,
            "axis": self.options["axis"],
            "arms": [{"name": arm.name, "overrides": list(arm.overrides)} for arm in self.arms],
            "seeds": self.seeds,
            "tasks": [task.label for task in self.tasks],
            "reference": self.reference,
            "plugins": imported_plugins(),
            "match": self.runs[0].config.match.quantity,
            "runs": [{"arm": run.arm, "seed": run.seed, "key": run.key, "folder": run.folder} for run in self.runs],
            "time": now(),
        }


def asks_for_sweep(arguments: Sequence[str]) -> bool:
    """Whether a command line of train.py is a sweep of configs/sweep/, not one run or a plain multirun."""
    shows = any(a.partition("=")[0] in SHOWS for a in arguments)
    named = any(a.startswith("sweep=") and a not in ("sweep=none", "sweep=null") for a in arguments)
    return named and not shows and any(flag in arguments for flag in FLAGS)


def read_plan(arguments: Sequence[str]) -> Plan:
    """The sweep that a command line of train.py asks for.

    Raises:
        ConfigError: on anything that cannot be composed; no run has been started then.
    """
    given = _Given(arguments)
    options = to_dict(compose_config(given.sweep).sweep)
    key = options["axis"]["key"]
    if key is None:
        raise ConfigError(
            f"{' '.join(given.sweep)} has no axis: it is what sweeps share. Choose another file of configs/sweep."
        )
    given.check(key)
    seeds, tasks = _seeds(given.values.get("seed") or options["seeds"]), _tasks(options["tasks"], given.task)
    common = merge(without_replaced(options["overrides"], given.common), given.common)
    base = compose_config(merge(common, [f"match={_match(options)}"], given.common))
    arms = _arms(options, base, given.values.get(key))
    reference = _reference(options, arms, given)
    common = merge(common, _match_overrides(options, common, arms, reference, given.common))
    composed = {arm.name: compose_config(merge(common, arm.overrides)) for arm in arms}
    runs = [_run(arm, seed, common, composed[arm.name]) for seed in seeds for arm in arms]
    _refuse_twins(runs)
    folder = Path(given.folder or f"sweeps/{options['name']}")
    sentence = command("python", "train.py", *arguments)
    return Plan(options, sentence, folder, arms, reference, seeds, tasks, runs, given.common)


def compose_config(overrides: Sequence[str], program: str = "train") -> DictConfig:
    """The configuration of train.py, or eval.py, with ``overrides``; ConfigError if there is none."""
    register_choices(overrides)
    try:
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            return compose(program, list(overrides))
    except (HydraException, OmegaConfBaseException) as error:
        line = command("python", f"{program}.py", *overrides)
        raise ConfigError(f"{line} cannot be composed: {error}") from error


class _Given:
    """What was typed: ``sweep`` for the sweep, ``task`` for evaluations, ``values`` with lists, ``common`` for arms."""

    def __init__(self, arguments: Sequence[str]) -> None:
        flags = [a for a in arguments if a.startswith("-")]
        if unknown := [flag for flag in flags if flag not in FLAGS]:
            raise ConfigError(f"{unknown[0]} does not go with sweep=: expected -m and overrides only.")
        self.sweep: list[str] = []
        self.task: list[str] = []
        self.common: list[str] = []
        self.values: dict[str, list[str]] = {}
        self.folder: str | None = None
        try:
            overrides = parse(a for a in take_paths(arguments) if a not in FLAGS)
        except HydraException as error:
            raise ConfigError(str(error)) from error
        for override in overrides:
            self._sort(override, override_name(override.input_line or ""))

    def _sort(self, override: Override, name: str) -> None:
        line = override.input_line or ""
        typed = line if override.is_sweep_override() else f"{name}={override.value()}"
        if name == "hydra.sweep.dir":
            self.folder = os.path.expanduser(OmegaConf.create({name: override.value()})[name])
        elif name.partition(".")[0] in ("hydra", "resume"):
            raise ConfigError(
                f"{typed} does not go with sweep=: every run has a folder of its own in the sweep's, which is "
                "sweeps/NAME or hydra.sweep.dir=FOLDER, and is continued by giving the same command again."
            )
        elif name == "init":
            raise ConfigError(
                f"{typed} does not go with sweep=: a run that starts from another's weights keeps its sizes. "
                "Leave sweep= out for a plain multirun, as in -m init=RUN_DIR seed=0,1."
            )
        elif name == "task":
            raise ConfigError(f"{line} does not go with sweep=: sweep.tasks=[perplexity,mqar] names the evaluations.")
        elif name.partition(".")[0] in ("sweep", "task"):
            if override.is_sweep_override():
                raise ConfigError(f"{line}: expected one value; several are a list, as in task.lengths=[64,128].")
            (self.sweep if name.startswith("sweep") else self.task).append(line)
        elif override.is_sweep_override():
            self.values[name] = [text.replace("\\:", ":") for text in override.sweep_string_iterator()]
        else:
            self.common.append(line)

    def check(self, key: str) -> None:
        """Take single values of the axis and of the seed for lists of one; refuse lists of anything else."""
        for line in list(self.common):
            if override_name(line) in (key, "seed"):
                self.common.remove(line)
                self.values.setdefault(override_name(line), [line.partition("=")[2]])
        for name, values in self.values.items():
            if name not in (key, "seed"):
                raise ConfigError(
                    f"{name}={','.join(values)}: this sweep has the axis {key}; only it and seed take several values. "
                    "Leave sweep= out for a plain multirun."
                )


def _arms(options: dict[str, Any], base: DictConfig, values: Sequence[str] | None) -> list[Arm]:
    key, rule = options["axis"]["key"], options["rule"]
    if rule is not None and rule not in RULES:
        raise ConfigError(f"sweep.rule={rule!r}: expected one of {', '.join(RULES)}.")
    if rule is not None:
        arms = RULES[rule](base, key, values)
    else:
        listed = [Arm(str(arm["name"]), tuple(arm.get("overrides") or ())) for arm in options["arms"] or []]
        arms = listed_arms(listed, key, values)
    names = [arm.name for arm in arms]
    if not arms:
        raise ConfigError(f"sweep={options['name']} has no arms: expected sweep.arms, sweep.rule, or {key}=A,B.")
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"sweep={options['name']} has two arms called {twice[0]}: expected different ones.")
    return arms


def _reference(options: dict[str, Any], arms: Sequence[Arm], given: _Given) -> str:
    names, wanted = [arm.name for arm in arms], options["reference"]
    if wanted in names:
        return str(wanted)
    if any(override_name(line) == "sweep.reference" for line in given.sweep):
        raise ConfigError(f"sweep.reference={wanted} is not an arm of this sweep: expected one of {', '.join(names)}.")
    return names[0]  # the axis was given on the command line, without the preset's reference


def _match(options: dict[str, Any]) -> str:
    return str(options["match"] or "none")


def _match_overrides(
    options: dict[str, Any], common: Sequence[str], arms: Sequence[Arm], reference: str, given: Sequence[str]
) -> list[str]:
    """``match=`` and the reference arm's values of all in which an arm's sizes differ from its."""
    choice = without_replaced([f"match={_match(options)}"], given)
    configs = {arm.name: compose_config(merge(common, choice, arm.overrides)) for arm in arms}
    if configs[reference].match.quantity is None:
        return choice
    sizes = {name: dict(_values({part: to_dict(config)[part] for part in SIZED})) for name, config in configs.items()}
    own = sizes[reference]
    missing = object()
    differ = [name for name in own if any(other.get(name, missing) != own[name] for other in sizes.values())]
    names = dict.fromkeys(("attention", "schedule.pattern", "schedule.patch", *differ))
    values = [f"++match.reference.{name}={_quoted(own[name])}" for name in names]
    return [*choice, *without_replaced(values, [o for o in given if override_name(o).startswith("match.reference")])]


def _values(node: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Paths and values below a node; lists, which are not sizes, are left out."""
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _values(value, f"{path}{key}.")
        elif not isinstance(value, list):
            yield f"{path}{key}", value


def _quoted(value: Any) -> str:
    if isinstance(value, str):
        if re.fullmatch(r"(\d+x)?[A-Za-z_][\w+]*", value) and value.lower() not in (
            "null",
            "true",
            "false",
            "nan",
            "inf",
        ):
            return value
        return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _seeds(values: Any) -> list[int]:
    listed = list(values) if isinstance(values, (list, tuple)) else [values]
    try:
        seeds = [int(str(value)) for value in listed]
    except (TypeError, ValueError):
        seeds = []
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise ConfigError(f"seed={','.join(map(str, listed))}: expected different whole numbers, 0 or more.")
    return seeds


def _tasks(entries: Sequence[Any] | None, given: Sequence[str]) -> list[EvalTask]:
    """The evaluations with their options; those that the command line gives come last."""
    known = choices("task")
    if isinstance(entries, str):
        raise ConfigError(f"sweep.tasks={entries}: expected a list, as sweep.tasks=[{entries}].")
    made = []
    for entry in entries or []:
        name = entry if isinstance(entry, str) else str(entry.get("name"))
        if name not in known:
            raise ConfigError(f"sweep.tasks has {name!r}: expected names of configs/task: {', '.join(known)}.")
        made.append(EvalTask(name, () if isinstance(entry, str) else tuple(entry.get("overrides") or ())))
    names = dict.fromkeys(task.name for task in made) if given else ()
    tasks = give_options(made, given, {name: list(compose_config([f"task={name}"], "eval").task) for name in names})
    for task in tasks:
        compose_config([f"task={task.name}", *task.overrides], "eval")  # says early what cannot be
    return tasks


def _run(arm: Arm, seed: int, common: Sequence[str], composed: DictConfig) -> Run:
    overrides = merge(common, arm.overrides, [f"seed={seed}"])
    config = composed.copy()
    config.seed = seed
    return Run(arm.name, seed, overrides, config, config_key(config))


def _refuse_twins(runs: Sequence[Run]) -> None:
    """Arms that would train the same, also where different schedules come to the same layers."""
    first: dict[str, Run] = {}
    for run in runs:
        plain, layers = run.config.copy(), []
        with suppress(ValueError):  # what cannot be built fails by itself, and says why
            layers = layer_names(run.config)
            plain.schedule, plain.attention = {"pattern": "+".join(layers)}, None
        if (twin := first.setdefault(config_key(plain), run)) is not run:
            same = "configuration" if twin.key == run.key else f"layers ({' '.join(layers)}), all else being equal"
            raise ConfigError(
                f"arms {twin.arm} and {run.arm} are the same {same}: leave one of them out, as with "
                "schedule.pattern=A,B, or choose another depth."
            )
