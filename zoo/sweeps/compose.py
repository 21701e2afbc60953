"""From a command line such as ``-m sweep=hybrid_ratio seed=0,1 model=125m`` to every run of the sweep."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from zoo.config import ConfigError, to_dict
from zoo.model.from_config import Architecture
from zoo.options.budget import step_budget
from zoo.options.choices import choices
from zoo.options.composing import compose_config
from zoo.options.groups.sweep import SweepOptions
from zoo.paths import MULTIRUN, command
from zoo.plugins import imported_plugins
from zoo.sweeps.arms import RULES, Arm, listed_arms, merge, override_name, without_replaced
from zoo.sweeps.evaluations import EvalTask, give_options
from zoo.sweeps.given import Given
from zoo.sweeps.ledger import config_key, now

SHOWS = ("-h", "--help", "--hydra-help", "--cfg", "-c", "--info", "-i", "--version", "--shell-completion", "-sc")
SCHEMA = "zoo-sweep/1"
REFERENCE = "match.reference"


@dataclass(frozen=True)
class PlannedRun:
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

    @property
    def budget(self) -> int:
        """Optimizer steps of the run."""
        return step_budget(self.config.trainer, self.config.data.length)

    def __str__(self) -> str:
        return f"{self.arm} seed {self.seed}"


@dataclass(frozen=True)
class SweepPlan:
    """A sweep.

    Attributes:
        options: options of configs/sweep/.
        command: the command that repeats the sweep.
        folder: folder of the sweep.
        arms: arms of the sweep.
        reference: name of the arm that others are compared with.
        seeds: seeds of each arm.
        tasks: evaluations of each run.
        runs: runs, in the order in which they are started.
        given: overrides of every arm that the command line names itself.
    """

    options: dict[str, Any]
    command: str
    folder: Path
    arms: list[Arm]
    reference: str
    seeds: list[int]
    tasks: list[EvalTask]
    runs: list[PlannedRun]
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
    return named and not shows and any(flag in arguments for flag in MULTIRUN)


def read_plan(arguments: Sequence[str]) -> SweepPlan:
    """The sweep that a command line of train.py asks for.

    Raises:
        ConfigError: on anything that cannot be composed; no run has been started then.
    """
    given = Given(arguments)
    options = to_dict(compose_config("train", given.sweep).sweep)
    key = options["axis"]["key"]
    if key is None:
        raise ConfigError(
            f"{' '.join(given.sweep)} has no axis: it is what sweeps share. Choose another file of configs/sweep."
        )
    options |= SweepOptions.read(options, "sweep").model_dump(exclude_unset=True)
    given.check(key)
    seeds, tasks = _seeds(given.values.get("seed") or options["seeds"]), _tasks(options["tasks"], given.task)
    common = merge(without_replaced(options["overrides"], given.common), given.common)
    base = compose_config("train", merge(common, [f"match={_match(options)}"], given.common))
    arms = _arms(options, base, given.values.get(key))
    reference = _reference(options, arms, given)
    common = merge(common, without_replaced([f"match={_match(options)}"], given.common))
    composed = {arm.name: _compose_arm(arm, common) for arm in arms}
    sizes = _reference_sizes(composed, reference, given.common)
    common = merge(common, [f"++{path}={_quoted(value)}" for path, value in sizes.items()])
    settled = {arm.name: _settled(arm, common, composed[arm.name], sizes) for arm in arms}
    runs = [_run(arm, seed, common, settled[arm.name]) for seed in seeds for arm in arms]
    _refuse_twins(runs)
    folder = Path(given.folder or f"sweeps/{options['name']}")
    sentence = command("python", "train.py", *arguments)
    return SweepPlan(options, sentence, folder, arms, reference, seeds, tasks, runs, given.common)


def _compose_arm(arm: Arm, common: Sequence[str]) -> DictConfig:
    try:
        return compose_config("train", merge(common, arm.overrides))
    except ConfigError as error:
        raise ConfigError(f"arm {arm.name}: {error}") from error


def _arms(options: dict[str, Any], base: DictConfig, values: Sequence[str] | None) -> list[Arm]:
    key, rule = options["axis"]["key"], options["rule"]
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


def _reference(options: dict[str, Any], arms: Sequence[Arm], given: Given) -> str:
    names, wanted = [arm.name for arm in arms], options["reference"]
    if wanted in names:
        return str(wanted)
    if any(override_name(line) == "sweep.reference" for line in given.sweep):
        raise ConfigError(f"sweep.reference={wanted} is not an arm of this sweep: expected one of {', '.join(names)}.")
    return names[0]  # the axis was given on the command line, without the preset's reference


def _match(options: dict[str, Any]) -> str:
    return str(options["match"] or "none")


def _reference_sizes(composed: Mapping[str, DictConfig], reference: str, given: Sequence[str]) -> dict[str, Any]:
    """The reference arm's values of all in which an arm's sizes differ from its, by path below ``match.reference``."""
    if composed[reference].match.quantity is None:
        return {}
    sizes = {name: dict(_values(asdict(Architecture.of(config)))) for name, config in composed.items()}
    own, missing = sizes[reference], object()
    differ = [name for name in own if any(other.get(name, missing) != own[name] for other in sizes.values())]
    names = dict.fromkeys(("attention", "schedule.pattern", "schedule.patch", *differ))
    values = {f"{REFERENCE}.{name}": own[name] for name in names}
    return {path: values[path] for path in without_replaced(values, filter(_sets_reference, given))}


def _sets_reference(override: str) -> bool:
    return override_name(override).startswith(REFERENCE)


def _settled(arm: Arm, common: Sequence[str], composed: DictConfig, sizes: Mapping[str, Any]) -> DictConfig:
    """The configuration of an arm with the sizes of the reference, as its overrides and ``common`` give it."""
    if any(map(_sets_reference, arm.overrides)):  # which come after those sizes
        return _compose_arm(arm, common)
    config = composed.copy()
    for path, value in sizes.items():
        OmegaConf.update(config, path, value, force_add=True)
    return config


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
    made = []
    for entry in entries or []:
        name = entry if isinstance(entry, str) else str(entry.get("name"))
        if name not in known:
            raise ConfigError(f"sweep.tasks has {name!r}: expected names of configs/task: {', '.join(known)}.")
        made.append(EvalTask(name, () if isinstance(entry, str) else tuple(entry.get("overrides") or ())))
    names = dict.fromkeys(task.name for task in made) if given else ()
    tasks = give_options(made, given, {name: list(EvalTask(name).compose().task) for name in names})
    for task in tasks:
        task.compose()  # says early what cannot be
    return tasks


def _run(arm: Arm, seed: int, common: Sequence[str], composed: DictConfig) -> PlannedRun:
    overrides = merge(common, arm.overrides, [f"seed={seed}"])
    config = composed.copy()
    config.seed = seed
    return PlannedRun(arm.name, seed, overrides, config, config_key(config))


def _refuse_twins(runs: Sequence[PlannedRun]) -> None:
    """Arms that would train the same, also where different schedules come to the same layers."""
    first: dict[str, PlannedRun] = {}
    for run in runs:
        plain, layers = run.config.copy(), []
        with suppress(ValueError):  # what cannot be built fails by itself, and says why
            layers = Architecture.of(run.config).layers
            plain.schedule, plain.attention = {"pattern": "+".join(layers)}, None
        if (twin := first.setdefault(config_key(plain), run)) is not run:
            same = "configuration" if twin.key == run.key else f"layers ({' '.join(layers)}), all else being equal"
            raise ConfigError(
                f"arms {twin.arm} and {run.arm} are the same {same}: leave one of them out, as with "
                "schedule.pattern=A,B, or choose another depth."
            )
