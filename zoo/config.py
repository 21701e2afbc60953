"""Configurations: the mixers' YAML files, and the saved configuration of a run."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from zoo.paths import expand, literal

ROOM = Path(__file__).resolve().parent
CONFIGS = ROOM / "configs" if (ROOM / "configs").is_dir() else ROOM.parent / "configs"  # of a wheel, or a checkout
LABEL = 80  # characters of a run's name that tell its layers


class ConfigError(ValueError):
    """Raised for a configuration that cannot be used; the message says what is wrong and what is expected."""


def register_mixers(more: Mapping[str, Any] | None = None) -> None:
    """Registers the ``mixers`` part of every file of configs/attention with Hydra, so that any entry can be overridden.

    Args:
        more: entries of external attentions, by name.
    """
    entries: dict[str, Any] = {}
    for file in sorted((CONFIGS / "attention").glob("*.yaml")):
        entries |= yaml.safe_load(file.read_text(encoding="utf-8"))["mixers"]
    entries |= more or {}
    ConfigStore.instance().store(name="all_mixers", node={"mixers": entries})


def to_dict(config: Any) -> dict[str, Any]:
    """Converts a configuration node to a plain dictionary, with interpolations resolved."""
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def require_plugins(names: Iterable[str]) -> None:
    """Checks that external packages have been imported; it imports none.

    Raises:
        ConfigError: the line that says what to add.
    """
    wanted = list(names)
    if any(name not in sys.modules for name in wanted):
        raise ConfigError(f"this run needs plugins=[{','.join(wanted)}]: add it.")


def run_dir(resume: str | None, init: str | None, name: str, time: str) -> str:
    """Default folder of a run; the resolver of configs/train.yaml."""
    return resume or f"{init.rstrip('/') + '-trained' if init else name}-{time}"


def run_label(attention: str, pattern: str, patch: str | None) -> str:
    """Label of a run's layers in its name: the attention, or the schedule if it is another one or has several."""
    tokens = [re.sub(r"(^|x)attention$", rf"\g<1>{attention}", token.strip()) for token in str(pattern).split("+")]
    names = {re.sub(r"^\d+x", "", token) for token in tokens}
    label = names.pop() if len(names) == 1 else "+".join(tokens)
    if patch:
        label += "@" + re.sub(r"(^|x|:)attention\b", rf"\g<1>{attention}", str(patch))
    return re.sub(r"[^\w+@.-]", "_", label)[:LABEL]


def load_run_config(run: str | Path) -> DictConfig:
    """Reads the resolved configuration of a run folder.

    Raises:
        ConfigError: if the folder or its config.yaml is missing or damaged, or needs plugins that are not imported.
    """
    folder = expand(run)
    file = folder / "config.yaml"
    if not folder.is_dir() or not file.is_file():
        raise ConfigError(_no_run(folder))
    try:
        config = OmegaConf.create(literal(yaml.safe_load(file.read_text(encoding="utf-8"))))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is damaged: {error}. Restore it, or start the run again elsewhere.") from error
    if not isinstance(config, DictConfig) or "model" not in config or "data" not in config:
        raise ConfigError(f"{file} is not the configuration of a run: it has no model or no data.")
    require_plugins(config.get("plugins") or ())
    return config


def _no_run(path: Path) -> str:
    """Why a path is no run folder, and which one is meant if it lies in one."""
    whole = Path(os.path.abspath(path))
    if inside := next((parent for parent in whole.parents if (parent / "config.yaml").is_file()), None):
        choice = f" with checkpoint={path.stem}" if path.suffix == ".ckpt" and path.stem != "last" else ""
        return f"{path} lies in a run folder: expected the folder itself, {inside}{choice}."
    if path.is_dir():
        return (
            f"{path} is not a run folder: it has no config.yaml. If a run was stopped there before it could write one, "
            "nothing is lost: start it again with its own command."
        )
    return f"{path} is not a run folder: it {'is a file' if path.exists() else 'does not exist'}."


def copy_option(source: DictConfig, target: DictConfig, name: str) -> None:
    """Copies the value of ``source`` at ``name`` to ``target``, groups whole and text uninterpreted."""
    value = OmegaConf.select(source, name)
    OmegaConf.update(target, name, literal(value), merge=False, force_add=True)


def moved_data(data: DictConfig, path: str | None, cache_dir: str | None) -> DictConfig:
    """Returns the group ``data`` of a saved configuration with the present path of its data, or of its cache.

    Raises:
        ConfigError: if the run's data set has no path of its own.
    """
    data = data.copy()
    source = data.get("source") or {}
    for name, value in (("path", path), ("cache_dir", cache_dir)):
        if value is None:
            continue
        if name == "path" and name not in source:
            raise ConfigError(f"data.path={value}: data={data.get('name')} has no path; leave it out.")
        if name in source:
            source[name] = literal(value)
        OmegaConf.update(data, name, literal(value), force_add=True)
    return data


def absolute(path: str) -> str:
    """Returns a path that means the same wherever a program is started."""
    return os.path.abspath(expand(path))
