"""Text generation from the cache."""

from zoo.generation.generate import Sampling, generate, stream

__all__ = ["Sampling", "generate", "stream"]
