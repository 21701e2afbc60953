"""Builds the configuration of a decoder from the options of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig

from zoo import mixers
from zoo.config import to_dict
from zoo.model.decoder import DecoderConfig
from zoo.model.schedule import expand_schedule


@dataclass(frozen=True)
class Architecture:
    """The parts of a configuration that say what its decoder is; plain values, interpolations resolved.

    Attributes:
        attention: what ``attention`` stands for in the schedule.
        schedule: pattern and patch.
        model: sizes and style.
        mixers: options of each entry that a schedule can name.
    """

    attention: str
    schedule: Mapping[str, Any]
    model: Mapping[str, Any]
    mixers: Mapping[str, dict[str, Any]]

    @classmethod
    def of(cls, config: DictConfig) -> Architecture:
        """Takes the four parts out of a configuration of train.py."""
        return cls(config.attention, to_dict(config.schedule), to_dict(config.model), to_dict(config.mixers))

    @property
    def layers(self) -> list[str]:
        """Entry or registered mixer of each layer.

        Raises:
            ScheduleError: if the pattern or the patch cannot be read, or names what does not exist.
        """
        known = {*mixers.names(), *self.mixers}
        pattern, patch = self.schedule["pattern"], self.schedule["patch"]
        return expand_schedule(pattern, self.model["depth"], self.attention, known, patch)


def decoder_config(architecture: Architecture, vocab_size: int, separator_tokens: Sequence[int] = ()) -> DecoderConfig:
    """The decoder of an architecture.

    Args:
        architecture: parts of a configuration.
        vocab_size: tokens of the vocabulary.
        separator_tokens: ids of those of ``model.separators``.

    Raises:
        ValueError: on an unknown attention, or on sizes that do not fit together.
    """
    layers = architecture.layers
    used = {name: architecture.mixers[name] for name in dict.fromkeys(layers) if name in architecture.mixers}
    model = {key: value for key, value in architecture.model.items() if key not in ("name", "separators")}
    return DecoderConfig(
        vocab_size=vocab_size, layer_types=layers, mixers=used, separator_tokens=list(separator_tokens), **model
    )
