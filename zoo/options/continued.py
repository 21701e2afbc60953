"""Configuration of a run that continues another: with ``resume=`` its training, with ``init=`` from its weights."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, OmegaConf

from zoo.config import ConfigError, absolute, copy_option, load_run_config, moved_data
from zoo.options.groups.plugins import listed
from zoo.paths import literal

MOVABLE = ("data.path", "data.cache_dir")  # whose content is checked
RESUMABLE = (
    "trainer.max_steps",
    "trainer.max_tokens",
    "trainer.devices",
    "logger",
    "data.num_workers",
    "data.verify",
    *MOVABLE,
)


FIXED = ("model", "attention", "mixers", "schedule", "tokenizer", "match", "experiment", "resume")  # of init=


def resumed_config(config: DictConfig, overrides: list[str]) -> DictConfig:
    """Returns the configuration of the run in ``config.resume``, with overrides of budget, devices, logger and paths.

    Other overrides must repeat the run's own values, so that its own command can be repeated.

    Raises:
        ConfigError: on an override that would change anything else.
    """
    saved = load_run_config(config.resume)
    for override in overrides:
        key = override.lstrip("+~").partition("=")[0].partition("@")[0].replace("/", ".")
        if key in ("resume", "init", "experiment", "plugins") or key.startswith("hydra"):
            continue
        node = next((name for name in RESUMABLE if key == name or key.startswith(f"{name}.")), None)
        if node is None:
            _refuse_change(key, config, saved)
            continue
        if node in MOVABLE:
            continue
        copy_option(config, saved, node)
        if node == "trainer.max_steps" and not any(o.startswith("trainer.max_tokens=") for o in overrides):
            saved.trainer.max_tokens = None
    given = {override.lstrip("+~").partition("=")[0] for override in overrides}
    path, cache_dir = (absolute(OmegaConf.select(config, name)) if name in given else None for name in MOVABLE)
    saved.data = moved_data(saved.data, path, cache_dir)
    saved.resume = literal(config.resume)
    OmegaConf.update(saved, "plugins", _plugins(saved.get("plugins"), config.get("plugins")), force_add=True)
    return saved


def _plugins(*named: Any) -> list[str]:
    """What a run has from outside, and what it is continued with, each once."""
    return list(dict.fromkeys(name for names in named for name in listed(names)))


def _refuse_change(key: str, config: DictConfig, saved: DictConfig) -> None:
    asked, has = (OmegaConf.select(c, key) for c in (config, saved))
    if isinstance(asked, DictConfig):  # a group: each has a name
        key = f"{key}.name"
        asked, has = (OmegaConf.select(c, key) for c in (config, saved))
    if asked != has:
        raise ConfigError(
            f"{key} cannot be changed by a resumed run, which has {has}: only {', '.join(RESUMABLE)} can. Start a new "
            "run for it."
        )


def initial_config(config: DictConfig, overrides: list[str]) -> DictConfig:
    """Returns the configuration of the run in ``config.init``, with every override but those of its weights.

    Raises:
        ConfigError: on an override of the model or the tokenizer, or of an experiment, which may set both.
    """
    saved = load_run_config(config.init)
    given = {override.lstrip("+~").partition("=")[0] for override in overrides}
    for key in sorted(given):
        if key in ("init", "plugins") or key.startswith("hydra."):
            continue
        group = key.partition("@")[0].replace("/", ".")
        if group.partition(".")[0] in FIXED:
            raise ConfigError(
                f"{key} cannot be changed by a run that starts from the weights of {config.init}: these fix the model "
                "and the tokenizer."
            )
        copy_option(config, saved, group)
    if "trainer.max_steps" in given and "trainer.max_tokens" not in given:
        OmegaConf.update(saved, "trainer.max_tokens", None, force_add=True)
    if "match" in saved:
        saved.match.quantity = None  # the sizes are those of the weights
    if not given & {"data", "data.source", "data.source.path"}:  # whose source has these places already
        places = (OmegaConf.select(saved, name) if name in given else None for name in MOVABLE)
        saved.data = moved_data(saved.data, *places)
    saved.init, saved.resume = literal(config.init), None
    OmegaConf.update(saved, "plugins", _plugins(saved.get("plugins"), config.get("plugins")), force_add=True)
    return saved
