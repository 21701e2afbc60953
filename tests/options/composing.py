"""Configurations of train.py for tests: groups are composed once, values are laid over them as Hydra reads them."""

from __future__ import annotations

from functools import lru_cache

from omegaconf import DictConfig, OmegaConf

from zoo.options.composing import compose_config, parse_overrides


@lru_cache
def base(program: str, *groups: str) -> DictConfig:
    return compose_config(program, groups)


def composed(text: str, program: str = "train", groups: tuple[str, ...] = ()) -> DictConfig:
    """The configuration with the overrides of ``text``, which blanks part; groups come before values."""
    words = text.split()
    chosen = tuple(w for w in words if w.partition("=")[0] in groups)
    config = base(program, *chosen).copy()
    OmegaConf.set_struct(config, False)
    for override in parse_overrides([w for w in words if w not in chosen]):
        if override.is_delete():
            parent, _, key = override.key_or_group.rpartition(".")
            del OmegaConf.select(config, parent)[key]
        else:
            OmegaConf.update(config, override.key_or_group, override.value(), force_add=True)
    return config
