"""Attention Zoo: decoder language models whose attention is a choice, layer by layer."""

from zoo import mixers
from zoo.model.checkpoint import load

__all__ = ["load", "mixers"]
