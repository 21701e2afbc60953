"""Token mixers: one file per attention, registered by being in this folder."""

from zoo.mixers.base import Cost, Mixer
from zoo.mixers.registry import build, get, names, option_names, register

__all__ = ["Cost", "Mixer", "build", "get", "names", "option_names", "register"]
