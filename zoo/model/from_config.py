"""Builds the configuration of a decoder from the options of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig

from zoo import mixers
from zoo.config import to_dict
from zoo.model.decoder import DecoderConfig
from zoo.model.schedule import expand_schedule


def decoder_config(config: DictConfig, vocab_size: int, separator_tokens: Sequence[int] = ()) -> DecoderConfig:
    """Builds the decoder's configuration from that of a run; ``separator_tokens`` are the ids of ``model.separators``.

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
