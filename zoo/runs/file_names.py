"""Names of result files: differences from a task's defaults are in them, so that no result replaces another."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from zoo.data.documents import expand
from zoo.plugins import config_files


def task_defaults(name: str) -> dict[str, Any]:
    """Returns the options of the task's YAML file, with those of the files that it includes; none if it has no file."""
    file = config_files("task").get(name)
    if file is None:
        return {}
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    found: dict[str, Any] = {}
    for entry in content.pop("defaults", ["_self_"]):
        found |= content if entry == "_self_" else task_defaults(entry)
    return found


def join_name(parts: Iterable[str]) -> str:
    """Joins parts with hyphens to a file name."""
    return "-".join(re.sub(r"[^\w.-]+", "_", part) for part in parts)


def changed_options(options: Mapping[str, Any], defaults: Mapping[str, Any]) -> list[str]:
    """Returns ``NAMEvalue`` for every option that is not the default."""
    return [f"{name}{plain(value)}" for name, value in options.items() if plain(value) != plain(defaults.get(name))]


def plain(value: Any) -> str:
    """Formats a value without any punctuation but that of numbers and words."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, (list, tuple)):
        return "_".join(map(plain, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def path_part(path: str) -> str:
    """Returns the name of ``path`` and some digits of a hash: paths that end alike have different ones."""
    return "path" + hashlib.sha256(os.fsencode(expand(path).resolve())).hexdigest()[:8]
