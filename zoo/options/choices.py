"""Choices by name: files of configs/, those of plugins, and what plugins register without a file.

What has no file is chosen with the defaults of its signature, or of its options' model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import yaml
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin

from zoo.config import register_mixers
from zoo.options.groups.attention import attention_model
from zoo.options.groups.data import source_model
from zoo.options.groups.entries import entry_model
from zoo.options.groups.optimizer import OptimizerOptions, optimizer_model
from zoo.options.groups.trainer import logger_model
from zoo.paths import literal
from zoo.plugins import config_files, config_folders
from zoo.registry import ATTENTIONS, LOGGERS, OPTIMIZERS, SOURCES, TASKS, Registry
from zoo.schema.base import Options

BASES = ("base",)  # files that others are made of, no choices themselves
GROUPS: dict[str, Registry[Any]] = {
    "attention": ATTENTIONS,
    "data": SOURCES,
    "task": TASKS,
    "optimizer": OPTIMIZERS,
    "logger": LOGGERS,
}
LISTS = {"schedule.pattern": "attention", "schedule.patch": "attention", "sweep.tasks": "task"}  # of names
NAME = re.compile(r"(?:(?<![\w.])\d+x)?(?<![\w.=])([A-Za-z_]\w*)(?![\w.=])")
PLACES = ("path", "cache_dir")  # options of a source that those of the data set have
PLAIN = (str, int, float, bool, list, dict, type(None))


class PluginConfigs(SearchPathPlugin):
    """Hydra plugin that adds the configuration files of external packages to every composition."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Appends the plugins' folders to the search path."""
        for folder in config_folders()[1:]:
            search_path.append("attention-zoo-plugin", f"file://{folder}")


_registered: dict[str, list[str]] | None = None


def register_choices(overrides: Sequence[str] = ()) -> None:
    """Registers all choices with Hydra; entry points are asked for names of ``overrides`` that are nowhere else.

    Args:
        overrides: overrides as typed.
    """
    global _registered
    for group, name in _named(overrides):
        name in GROUPS[group]  # noqa: B015 - asks the entry points
    outside = {group: registry.outside() for group, registry in GROUPS.items()}
    if outside == _registered:
        return
    Plugins.instance().register(PluginConfigs)
    register_mixers(_outside_mixers())
    for group, names in outside.items():
        for name in (name for name in names if name not in config_files(group)):
            package = "_global_" if group == "attention" else None
            ConfigStore.instance().store(name, NODES[group](name), group=group, package=package, provider="plugin")
    _registered = outside


def choices(group: str) -> list[str]:
    """Returns the choices of a group: names of files, and of what plugins register."""
    outside = GROUPS[group].outside() if group in GROUPS else []
    return sorted({*config_files(group), *outside} - {*BASES})


def _named(overrides: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Group and name of what is typed and has no file."""
    typed = dict(text.lstrip("+~").partition("=")[::2] for text in overrides)
    entries = {key.split(".")[1] for key in typed if key.startswith("mixers.")}
    named = {entry for entry in entries if f"mixers.{entry}.name" in typed}
    for key, value in typed.items():
        group = "attention" if re.fullmatch(r"mixers\.\w+\.name", key) else LISTS.get(key, key)
        if group in GROUPS:
            found = NAME.findall(value)
            yield from ((group, name) for name in found if name not in {*config_files(group), *named, group, "null"})
    yield from (("attention", entry) for entry in entries - named if entry not in config_files("attention"))


def _outside_mixers() -> dict[str, Any]:
    """Options of the attentions of plugins, of their files or else of their signatures."""
    entries: dict[str, Any] = {}
    for name in ATTENTIONS.outside():
        file = config_files("attention").get(name)
        entries |= _attention(name)["mixers"] if file is None else yaml.safe_load(file.read_text("utf-8"))["mixers"]
    return entries


def defaults(model: type[Options]) -> dict[str, Any]:
    """Returns the defaults of a model's options; ``???`` for one without a default."""
    found: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        value = "???" if field.is_required() else literal(field.get_default(call_default_factory=True))
        value = list(value) if isinstance(value, tuple) else value
        if isinstance(value, PLAIN):
            found[name] = value
    return found


def _attention(name: str) -> dict[str, Any]:
    return {"attention": name, "mixers": {name: defaults(attention_model(name))}}


def _data(name: str) -> dict[str, Any]:
    source = defaults(source_model(name))
    source |= {place: f"${{data.{place}}}" for place in PLACES if place in source}
    return {"defaults": ["base", "_self_"], "name": name, "source": {"kind": name, **source}}


def _optimizer(name: str) -> dict[str, Any]:
    model = optimizer_model(name)
    own = {key: value for key, value in defaults(model).items() if key not in OptimizerOptions.model_fields}
    return {"defaults": ["base", "_self_"], **own, "name": name}


def _task(name: str) -> dict[str, Any]:
    return {**defaults(entry_model(TASKS, name, "task")), "name": name}


def _logger(name: str) -> dict[str, Any]:
    return {name: defaults(logger_model(name))}


NODES: Mapping[str, Callable[[str], dict[str, Any]]] = {
    "attention": _attention,
    "data": _data,
    "task": _task,
    "optimizer": _optimizer,
    "logger": _logger,
}
