"""External packages: ``plugins=[my_package]`` is imported first, so that what it registers can be chosen by name.

A run folder records the names. They are never imported because a file names them: who loads the run names them again.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Sequence
from importlib import import_module
from pathlib import Path

import yaml

from zoo.config import CONFIGS, ConfigError
from zoo.registry import imported_entry_points

KEY = "plugins"
MODULE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
_named: list[str] = []


def import_plugins(names: Sequence[str]) -> None:
    """Imports packages, which may lie in the current folder.

    Raises:
        ConfigError: one line about the first that cannot be imported.
    """
    here = os.getcwd()
    if names and here not in sys.path:
        sys.path.append(here)  # last, so that no folder beside the user hides an installed package
    for name in names:
        if MODULE.fullmatch(name) is None:
            raise ConfigError(f"{KEY}={name}: expected names of Python packages, as {KEY}=[my_package].")
        try:
            import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise ConfigError(_failed(name, error)) from error
            raise ConfigError(
                f"{KEY}=[{name}]: there is no package {error.name} in {here} or among those installed: start from the "
                "folder that it lies in, or install it."
            ) from error
        except Exception as error:
            raise ConfigError(_failed(name, error)) from error
        if name not in _named:
            _named.append(name)


def _failed(name: str, error: Exception) -> str:
    line = " ".join(f"{type(error).__name__}: {error}".split())
    return f"{KEY}=[{name}] cannot be imported: {line}. Mend it, or leave it out."


def import_typed(arguments: Iterable[str], program: str | None = None) -> None:
    """Imports the plugins that a command line names, or else those of configs/PROGRAM.yaml.

    Args:
        arguments: as typed.
        program: file of configs/; None where there is none.

    Raises:
        ConfigError: one line about what cannot be imported.
    """
    given = [a.partition("=")[2] for a in arguments if a.lstrip("+").startswith(f"{KEY}=")]
    if given:
        import_plugins(read_names(given[-1]))
    elif program is not None:
        import_plugins(yaml.safe_load((CONFIGS / f"{program}.yaml").read_text(encoding="utf-8")).get(KEY) or [])


def read_names(text: str) -> list[str]:
    """Splits ``[a,b]`` or ``a,b`` into names."""
    inner = text.strip().removeprefix("[").removesuffix("]")
    names = [part.strip(" '\"") for part in inner.split(",")]
    return [name for name in names if name not in ("", "null")]


def imported_plugins() -> list[str]:
    """Returns the names of all external packages in use, those of entry points included."""
    return list(dict.fromkeys([*_named, *imported_entry_points()]))


def plugin_words() -> list[str]:
    """Returns the ``plugins=`` argument for a printed command, if external packages are in use."""
    names = imported_plugins()
    return [f"{KEY}=[{','.join(names)}]"] if names else []


def config_folders() -> list[Path]:
    """Returns configs/ of this project, then of every plugin that has one."""
    modules = [sys.modules[name.partition(".")[0]] for name in imported_plugins()]
    places = [Path(place) / "configs" for module in modules for place in getattr(module, "__path__", ())]
    return [CONFIGS, *dict.fromkeys(place for place in places if place.is_dir())]


def config_files(group: str) -> dict[str, Path]:
    """Returns the files of a configuration group, as ``attention``, by name; those of this project take precedence."""
    found: dict[str, Path] = {}
    for folder in config_folders():
        for file in sorted((folder / group).glob("*.yaml")):
            found.setdefault(file.stem, file)
    return found
