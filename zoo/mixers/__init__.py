"""Token mixers: one file each, found and registered by being in this folder."""

from importlib import import_module
from pkgutil import iter_modules

from zoo.mixers.base import Cost, Mixer
from zoo.mixers.registry import build, get, names, option_names

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = ["Cost", "Mixer", "build", "get", "names", "option_names"]
