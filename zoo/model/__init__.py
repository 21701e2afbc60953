"""The decoder language model: blocks, schedule, initialization, loss and loading."""

from zoo.model.checkpoint import CheckpointError, load
from zoo.model.decoder import Decoder, DecoderCache, DecoderConfig
from zoo.model.schedule import expand_schedule

__all__ = ["CheckpointError", "Decoder", "DecoderCache", "DecoderConfig", "expand_schedule", "load"]
