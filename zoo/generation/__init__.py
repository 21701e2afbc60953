"""Text generation with a decoder's caches."""

from zoo.generation.generate import Sampling, generate, stream

__all__ = ["Sampling", "generate", "stream"]
