"""Configuration: the mixers' YAML files, safe building of objects, and reading a run's saved configuration."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_store import ConfigStore
from hydra.utils import instantiate as hydra_instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
NAMESPACE = "zoo."
PATHS = ("run", "resume", "init")


class ConfigError(ValueError):
    """A configuration that cannot be used; the message says what is wrong and what is expected."""


def register_mixers(folder: Path = CONFIGS / "attention") -> None:
    """Make the ``mixers`` part of every file of configs/attention known, so that any entry can be overridden."""
    entries: dict[str, Any] = {}
    for file in sorted(folder.glob("*.yaml")):
        entries |= yaml.safe_load(file.read_text(encoding="utf-8"))["mixers"]
    ConfigStore.instance().store(name="all_mixers", node={"mixers": entries})


def to_dict(config: Any) -> dict[str, Any]:
    """Plain dictionary of a configuration node, interpolations resolved."""
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def instantiate(config: DictConfig, **kwargs: Any) -> Any:
    """Build the object that ``_target_`` names; only this project's own classes.

    Raises:
        ConfigError: if a ``_target_`` anywhere in the configuration is outside ``zoo.``.
    """
    for target in _targets(to_dict(config)):
        if not isinstance(target, str) or not target.startswith(NAMESPACE):
            raise ConfigError(f"_target_={target!r} is refused: only classes of this project ({NAMESPACE}*) are built.")
    return hydra_instantiate(config, **kwargs)


def _targets(node: Any) -> Iterator[Any]:
    if isinstance(node, dict):
        if "_target_" in node:
            yield node["_target_"]
        for value in node.values():
            yield from _targets(value)
    elif isinstance(node, list):
        for value in node:
            yield from _targets(value)


def quote_paths(arguments: list[str], keys: Collection[str] = PATHS) -> list[str]:
    """Quote path arguments, so that Hydra's grammar takes commas, equals signs and spaces in them."""
    quoted = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if equals and key in keys and value not in ("", "null") and value[0] not in "'\"[":
            escaped = re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), value)
            value = f"'{escaped}'"
        quoted.append(key + equals + value)
    return quoted


def run_dir(resume: str | None, init: str | None, name: str, time: str) -> str:
    """Folder of a run that is given none: the resolver of configs/train.yaml."""
    return resume or f"{init.rstrip('/') + '-trained' if init else name}-{time}"


def take_text(arguments: list[str], key: str) -> tuple[str | None, list[str]]:
    """The last ``key=...`` argument as it was typed, whatever characters it has, and the other arguments."""
    given = [a for a in arguments if a.startswith(f"{key}=")]
    return (given[-1].removeprefix(f"{key}=") if given else None), [a for a in arguments if a not in given]


def load_run_config(run: str | Path) -> DictConfig:
    """The resolved configuration that a run folder keeps.

    Raises:
        ConfigError: if the folder or its config.yaml is missing or damaged.
    """
    file = Path(run) / "config.yaml"
    if not Path(run).is_dir():
        raise ConfigError(f"{run} is not a run folder: it does not exist.")
    if not file.is_file():
        raise ConfigError(f"{run} is not a run folder: it has no config.yaml.")
    try:
        config = OmegaConf.create(yaml.safe_load(file.read_text(encoding="utf-8")))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is damaged: {error}.") from error
    if isinstance(config, ListConfig) or "model" not in config or "data" not in config:
        raise ConfigError(f"{file} is not the configuration of a run: it has no model or no data.")
    return config
