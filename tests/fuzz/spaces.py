"""What every program can be given: its options with their defaults and choices, its groups, and what makes it small."""

from __future__ import annotations

import re
import runpy
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from random import Random
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from tests.fuzz import values
from tests.fuzz.forked import ROOT, Case
from zoo.commands import COMMANDS
from zoo.config import CONFIGS, register_mixers

NO_CASE = ("trainer.compile", "hydra", "trainer.num_nodes")  # minutes of compiling; waits for other machines
TINY = ("experiment=tiny", "data=text", "data.path=small", "trainer.max_steps=2", "trainer.validate_every=1000")


@dataclass(frozen=True)
class Space:
    """The options of a program.

    Attributes:
        base: arguments of every case, which make it small.
        defaults: of every option by its key. groups: names of configuration files by group. plain: other arguments.
        overrides: whether ``+key``, ``~key`` and other forms of Hydra's can be given.
    """

    program: str
    base: tuple[str, ...]
    defaults: dict[str, Any]
    groups: dict[str, tuple[str, ...]] = field(default_factory=dict)
    plain: tuple[str, ...] = ()
    overrides: bool = True

    def case(self, rng: Random) -> Case:
        """A random set of arguments; about half have something wrong in them."""
        count = rng.choice((0, 1, 1, 1, 1, 2, 2, 3, 5))
        return Case(self.program, (*self.base, *(self._argument(rng) for _ in range(count))))

    def _argument(self, rng: Random) -> str:
        ways: list[tuple[float, Callable[[Random], str]]] = [
            (9, self._plausible),
            (9, self._odd),
            (1, self._misspelled),
            (1, lambda rng: rng.choice(values.ARGUMENTS)),
        ]
        ways += [(3, self._group), (1, self._odd_group)] if self.groups else []
        ways += [(1, self._form)] if self.overrides else []
        ways += [(2, lambda rng: rng.choice(self.plain))] if self.plain else []
        return rng.choices([make for _, make in ways], [weight for weight, _ in ways])[0](rng)

    def _key(self, rng: Random) -> str:
        sections = defaultdict(list)
        for key in self.defaults:
            sections[key.partition(".")[0]].append(key)
        return rng.choice(sections[rng.choice(sorted(sections))])

    def _plausible(self, rng: Random) -> str:
        key = self._key(rng)
        return f"{key}={values.plausible(rng, key, self.defaults[key], choices().get(key.rpartition('.')[2], ()))}"

    def _odd(self, rng: Random) -> str:
        key = self._key(rng)
        return f"{key}={values.odd(rng, key)}"

    def _misspelled(self, rng: Random) -> str:
        key, _, value = self._plausible(rng).partition("=")
        return f"{values.misspelled(rng, key)}={value}"

    def _group(self, rng: Random) -> str:
        group = rng.choice(sorted(self.groups))
        return f"{group}={rng.choice(self.groups[group])}"

    def _odd_group(self, rng: Random) -> str:
        group = rng.choice(sorted(self.groups))
        name = rng.choice(self.groups[group])
        return rng.choice((f"{group}={values.misspelled(rng, name)}", f"{group}={values.odd(rng, group)}", f"~{group}"))

    def _form(self, rng: Random) -> str:
        key = self._key(rng)
        section = key.partition(".")[0]
        value = values.odd(rng, key)
        return rng.choice((f"~{key}", f"+{key}={value}", f"++{key}={value}", f"~{section}", f"{section}={value}"))


def flatten(node: Any, above: str = "") -> dict[str, Any]:
    """Values by dotted key; lists and empty mappings are values."""
    if not isinstance(node, dict) or not node:
        return {above: node}
    found: dict[str, Any] = {}
    for key, value in node.items():
        found |= flatten(value, f"{above}.{key}" if above else str(key))
    return found


@cache
def choices() -> dict[str, tuple[str, ...]]:
    """What the comments of the configuration files offer, by the last part of the key."""
    found = {}
    for file in sorted(CONFIGS.rglob("*.yaml")):
        for key, comment in re.findall(r"^ *(\w+):[^#\n]*# *(.*)$", file.read_text(encoding="utf-8"), re.MULTILINE):
            if match := re.match(r"([\w-]+(?: \| [\w-]+)+)", comment):
                found[key] = tuple(match[1].split(" | "))
    return found


def composed(name: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Options of a program by dotted key, without those that no case can try."""
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = OmegaConf.to_container(compose(name, list(overrides)), resolve=False)
    return {key: value for key, value in flatten(config).items() if not key.startswith(NO_CASE)}


def group_names(*groups: str) -> dict[str, tuple[str, ...]]:
    """Files of configuration groups."""
    files = {group: sorted(file.stem for file in (CONFIGS / group).glob("*.yaml")) for group in groups}
    return {group: tuple(name for name in names if name != "base") for group, names in files.items()}


def train_spaces() -> list[Space]:
    """train.py on every attention, and on other data."""
    register_mixers()
    groups = group_names("attention", "schedule", "model", "tokenizer", "optimizer", "trainer", "logger", "match")
    groups |= group_names("data", "data/recall", "experiment", "sweep")
    every = composed("train", TINY)
    spaces = []
    for attention in groups["attention"]:
        own = {k: v for k, v in every.items() if not k.startswith("mixers.") or k.startswith(f"mixers.{attention}.")}
        spaces.append(Space("train.py", (*TINY, f"attention={attention}"), own, groups))
    return spaces


OWN = {"qa": "task.path=qa.json", "lm_eval": "task.names=[none]"}  # what a task cannot do without
CAPS = {"samples": "2", "lengths": "[256]", "max_documents": "1", "spans": "1", "generate": "2", "max_records": "2"}


def eval_spaces() -> list[Space]:
    """eval.py with every task; the suites rarely, because they take long."""
    groups = group_names("task")
    spaces = []
    for task in groups["task"]:
        defaults = composed("eval", [f"task={task}"])
        caps = [f"task.{key}={value}" for key, value in CAPS.items() if f"task.{key}" in defaults]
        caps += [OWN[task]] if task in OWN else []
        spaces.append(Space("eval.py", ("run=run", "device=cpu", f"task={task}", *caps), defaults, groups))
    return spaces


SMALL_MODEL = ("model.width=32", "model.depth=1", "model.heads=2")
SCRIPTS: dict[str, tuple[str, ...]] = {  # arguments that make each one small
    "plan": ("attentions=softmax",),
    "report": (),
    "check": ("softmax", "longest=3", "compile=false"),
    "compare": ("run",),
    "gallery": ("--help",),  # draws for minutes
    "bench_layers": ("length=64", "width=32", "heads=2", "rounds=1", "attentions=window"),
    "bench_models": ("contexts=32", "tokens=64", "rounds=1", "arms=softmax", "vocab=64", *SMALL_MODEL),
    "bench_training": ("experiment=tiny", "data=text", "data.path=small", *SMALL_MODEL, "rounds=1", "steps=3"),
    "compile_kernels": ("kernel=linear.step", "width=256", "dtype=bf16", "calls=main", "arch=sm_80", "jobs=1"),
    "conversion_table": ("run", "context=8", "batch=1", "tokens=2", "rounds=1"),
    "tune_kernels": ("kernel=linear.mix",),
}
COMPOSED = {  # scripts with a file in configs/
    "generate": ("run=run", "device=cpu", "prompt=a b", "max_new_tokens=3"),
    "convert": ("run=run", "device=cpu", "kv_heads=1", "whiten_tokens=64"),
}
TAKES_TRAIN_OPTIONS = ("plan", "bench_models", "bench_training")
PATHS = ("run", "missing", "small", "empty", "lines.jsonl", "run/checkpoints/last.ckpt", "a=b", "", "[1]", "~/no")


def script_spaces() -> list[Space]:
    """Every script of scripts/ but those for kernels' speed and for this trial."""
    return [script_space(name) for name in (*SCRIPTS, *COMPOSED)]


def script_space(name: str) -> Space:
    """One script of scripts/."""
    program = f"scripts/{name}.py"
    if name in COMPOSED:
        return Space(program, COMPOSED[name], composed(name))
    source = import_module(f"zoo.commands.{name}").__dict__ if name in COMMANDS else runpy.run_path(str(ROOT / program))
    own = source["Options"].model_fields
    defaults = {key: field.default for key, field in own.items()}
    groups = group_names("attention", "model", "tokenizer") if name in TAKES_TRAIN_OPTIONS else {}
    return Space(program, SCRIPTS[name], defaults, groups, PATHS, overrides=False)


def choose_spaces(names: Sequence[str]) -> list[list[Space]]:
    """Spaces of each program called by a name: ``train``, ``eval``, ``scripts`` or that of a script.

    Raises:
        ValueError: on an unknown name.
    """
    many = {"train": train_spaces, "eval": eval_spaces, "scripts": script_spaces}
    if unknown := set(names) - {*many, *SCRIPTS, *COMPOSED}:
        known = ", ".join((*many, *SCRIPTS, *COMPOSED))
        raise ValueError(f"programs={','.join(sorted(unknown))}: expected some of {known}.")
    return [many[name]() if name in many else [script_space(name)] for name in names]
