"""Configurations through Hydra whose errors are one line with a near name, and what a command line asks for."""

from __future__ import annotations

import argparse
import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from zoo.config import CONFIGS, ConfigError
from zoo.options.choices import BASES, register_choices
from zoo.paths import command as shell_command
from zoo.schema.messages import suggest


@dataclass(frozen=True)
class Command:
    """What a command line asks a Hydra program to do.

    Attributes:
        overrides: as they were typed.
        jobs: overrides of every job; one unless ``multirun``.
        multirun: whether it has -m.
        help: whether it asks for help.
        shows: whether Hydra is asked to show something, as with --cfg job, and nothing runs.
        config_dir: folder that is searched besides configs/.
    """

    overrides: list[str]
    jobs: list[list[str]]
    multirun: bool = False
    help: bool = False
    shows: bool = False
    config_dir: str | None = None


def read_command(arguments: Sequence[str]) -> Command:
    """Flags and overrides of a command line.

    Raises:
        ConfigError: on a flag that does not exist, and on overrides that cannot be read.
    """
    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        raise ConfigError(f"{shell_command(*arguments)}: {message}")

    parser.error = refuse  # type: ignore[method-assign]
    found: argparse.Namespace = parser.parse_args(list(arguments))
    shows = bool(found.cfg or found.info or found.hydra_help or found.shell_completion)
    if found.help or shows:
        return Command(found.overrides, [found.overrides], help=found.help, shows=shows, config_dir=found.config_dir)
    parsed = parse_overrides(found.overrides)
    multirun = found.multirun or "hydra.mode=MULTIRUN" in found.overrides
    jobs = list(_jobs(parsed)) if multirun else [list(found.overrides)]
    return Command(list(found.overrides), jobs, multirun, config_dir=found.config_dir)


def parse_overrides(overrides: Sequence[str]) -> list[Override]:
    """Overrides as Hydra's grammar reads them.

    Raises:
        ConfigError: names the first that it cannot read, and how to write it.
    """
    parser, found = OverridesParser.create(), []
    for text in overrides:
        key, equals, value = text.partition("=")
        try:
            if not key.strip("+~"):
                raise ConfigError(f"{text}: expected KEY=VALUE, as in trainer.max_steps=100.")
            found.append(parser.parse_override(text))
        except HydraException as error:
            if not equals and not text.startswith("~"):
                raise ConfigError(f"{text}: expected KEY=VALUE, as in trainer.max_steps=100.") from error
            escaped = value.replace("\\", "\\\\").replace("'", "\\'")
            quoted = shell_command(f"{key}='{escaped}'")
            raise ConfigError(f"{text} cannot be read: a value with such characters needs quotes, {quoted}.") from error
    return found


def _jobs(overrides: Sequence[Override]) -> Iterator[list[str]]:
    """Overrides of every job of a multirun, in Hydra's order."""
    choices = []
    for override in overrides:
        key = override.get_key_element()
        if override.is_sweep_override():
            choices.append([f"{key}={value}" for value in override.sweep_string_iterator()])
        else:
            choices.append([override.input_line or ""])
    for job in itertools.product(*choices):
        yield list(job)


def compose_config(
    program: str, overrides: Sequence[str] = (), config_dir: str | None = None, *, hydra: bool = False
) -> DictConfig:
    """The configuration of ``configs/PROGRAM.yaml`` with ``overrides``.

    Args:
        program: ``train``, ``eval``, or another file of configs/.
        overrides: as on a command line.
        config_dir: folder that is searched before configs/.
        hydra: whether Hydra's own part, as hydra.run.dir, is wanted too.

    Raises:
        ConfigError: one line about the override that cannot be composed, with the name that was meant.
    """
    register_choices(overrides)
    search = [f"hydra.searchpath=[{Path(config_dir).resolve().as_uri()}]"] if config_dir else []
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        parsed = parse_overrides(overrides)
        if not any(override.key_or_group == "hydra.searchpath" for override in parsed):
            for override in parsed:
                choices = group_choices(override.key_or_group)
                own = Path(config_dir or os.devnull, override.key_or_group).glob("*.yaml")
                if line := _wrong_choice(override, [*choices, *(file.stem for file in own)]):
                    raise ConfigError(line)
        try:
            return compose(program, [*overrides, *search], return_hydra_config=hydra)
        except (HydraException, OmegaConfBaseException, ValueError) as error:
            raise ConfigError(_diagnose(program, parsed, error)) from error


def group_choices(group: str) -> list[str]:
    """Files of a group that can be chosen; only inside of a composition."""
    loader = GlobalHydra.instance().config_loader()
    return [n for n in loader.get_group_options(group, ObjectType.CONFIG) if n not in BASES]


def _diagnose(program: str, parsed: Sequence[Override], error: Exception) -> str:
    """One line about the override that is the cause of an error."""
    for override in parsed:
        if override.is_sweep_override():
            return (
                f"{override.input_line}: several values are a multirun, which needs -m; a list is written [A,B], and a "
                "word with commas in quotes."
            )
    try:
        base = compose(program, [o.input_line or "" for o in parsed if group_choices(o.key_or_group)])
    except (HydraException, OmegaConfBaseException, ValueError):
        return _flat(error)
    for override in parsed:
        if not group_choices(override.key_or_group) and (line := _wrong_key(override, base)):
            return line
    return _flat(error)


def _wrong_choice(override: Override, choices: Sequence[str]) -> str | None:
    """What is wrong with the choice of a group's file, if anything is."""
    if not choices or override.is_sweep_override():
        return None
    value, group = override.value(), override.key_or_group
    if isinstance(value, dict) or override.is_delete() or value is None:
        return f"{override.input_line}: expected one of the files of configs/{group}: {', '.join(choices)}."
    for name in value if isinstance(value, list) else [value]:
        if str(name).removesuffix(".yaml") not in choices:
            return f"{group}={name}: unknown choice; {suggest(str(name), choices)}"
    if override.is_add() and not override.is_force_add():
        return f"{override.input_line}: {group} has a choice already: leave out the +."
    return None


def _wrong_key(override: Override, base: DictConfig) -> str | None:
    """What is wrong with the path of an override, if anything is."""
    path = override.key_or_group
    node: Any = base
    parts = path.split(".")
    if parts[0] == "hydra":
        return None
    for index, part in enumerate(parts):
        place = ".".join(parts[:index])
        if node is None:
            return _below_null(path, place)
        if not isinstance(node, DictConfig):
            return f"{path}: {place} is a single value and has no options below it."
        if part not in node:
            name = ".".join(parts[: index + 1])
            if override.is_add():
                return None
            if place and not node and not override.is_delete():
                return f"{path}: {place} is empty, and what it takes is added with a +: +{override.input_line}."
            return f"{path}: unknown option; {suggest(str(name), *_names(base, place))}"
        node = "" if OmegaConf.is_interpolation(node, part) else node[part]
    if override.is_add() and not override.is_force_add():
        return f"{override.input_line}: {path} exists already: leave out the +."
    return None


def _below_null(path: str, place: str) -> str:
    group = place.replace(".", "/")
    files = group_choices(group)
    how = f"choose {group}={' or '.join(files)} first" if files else f"set {place} first"
    return f"{path}: {place} is null and has no options: {how}."


def _names(base: DictConfig, place: str) -> tuple[list[str], list[str]]:
    """Options at ``place``, and all others that a wrong name may have meant."""
    node = OmegaConf.select(base, place) if place else base
    start = f"{place}." if place else ""
    near = [start + str(key) for key in node] if isinstance(node, DictConfig) else []
    plain = OmegaConf.to_container(base, resolve=False)
    return near, list(_paths(plain))


def _paths(node: Any, place: str = "") -> Iterator[str]:
    for key, value in node.items() if isinstance(node, dict) else ():
        path = place + str(key)
        yield path
        yield from _paths(value, f"{path}.")


def _flat(error: Exception) -> str:
    """An error of Hydra as one line, without the addresses of its manual."""
    lines = [line.strip() for line in str(error).splitlines()]
    return " ".join(line for line in lines if line and not line.startswith(("See ", "full_key", "object_type")))
