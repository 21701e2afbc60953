"""What a configuration comes to: its decoder, its budget, and that of a run that is continued."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from zoo import mixers
from zoo.config import ConfigError, absolute, copy_option, load_run_config, move_data, to_dict
from zoo.model import DecoderConfig, expand_schedule
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


def resumed_config(config: DictConfig, overrides: list[str]) -> DictConfig:
    """Configuration of the run in ``config.resume``, with what may be overridden: budget, devices, logger and places.

    Other overrides must say what the run has, so that its own command can be repeated.

    Raises:
        ConfigError: on an override that would change anything else.
    """
    saved = load_run_config(config.resume)
    for override in overrides:
        key = override.lstrip("+~").partition("=")[0].partition("@")[0].replace("/", ".")
        if key in ("resume", "init", "experiment") or key.startswith("hydra"):
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
    move_data(saved, path, cache_dir)
    saved.resume = literal(config.resume)
    return saved


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


def decoder_config(config: DictConfig, vocab_size: int, separator_tokens: Sequence[int] = ()) -> DecoderConfig:
    """The decoder that a configuration asks for; ``separator_tokens`` are those of ``model.separators``.

    Raises:
        ValueError: on an unknown attention, or on sizes that do not fit together.
    """
    entries: dict[str, dict[str, Any]] = to_dict(config.mixers)
    known = {*mixers.names(), *entries}
    schedule = config.schedule
    layers = expand_schedule(schedule.pattern, config.model.depth, config.attention, known, schedule.patch)
    used = {name: entries[name] for name in dict.fromkeys(layers) if name in entries}
    model = to_dict(config.model)
    for key in ("name", "separators"):
        model.pop(key)
    return DecoderConfig(
        vocab_size=vocab_size, layer_types=layers, mixers=used, separator_tokens=list(separator_tokens), **model
    )


def step_budget(config: DictConfig) -> int:
    """Optimizer steps of the budget, which is given in tokens, or else in steps.

    Raises:
        ConfigError: if neither is given, or if it is not positive.
    """
    trainer = config.trainer
    tokens_per_step = trainer.batch_size * config.data.length
    if trainer.max_tokens is not None:
        steps = math.ceil(trainer.max_tokens / tokens_per_step)
    elif trainer.max_steps is not None:
        steps = trainer.max_steps
    else:
        raise ConfigError("no budget: set trainer.max_steps or trainer.max_tokens.")
    if steps < 1:
        raise ConfigError(f"the budget is {steps} steps: expected at least 1.")
    return steps
