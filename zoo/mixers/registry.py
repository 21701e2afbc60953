"""Names of mixers and how they are built."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from zoo.mixers.base import Mixer

_REGISTRY: dict[str, type[Mixer]] = {}
_SHARED = ("self", "width", "heads", "depth", "layer")

MixerType = TypeVar("MixerType", bound=type[Mixer])


def register(name: str) -> Callable[[MixerType], MixerType]:
    """Class decorator: makes a mixer known as ``name``."""

    def add(cls: MixerType) -> MixerType:
        if name in _REGISTRY:
            raise ValueError(f"two mixers are called {name!r}: {_REGISTRY[name].__name__} and {cls.__name__}.")
        _REGISTRY[name] = cls
        return cls

    return add


def names() -> list[str]:
    """All registered names, sorted."""
    return sorted(_REGISTRY)


def get(name: str) -> type[Mixer]:
    """The class called ``name``.

    Raises:
        ValueError: if there is none; the message lists what exists.
    """
    if name not in _REGISTRY:
        raise ValueError(f"unknown attention {name!r}: expected one of {', '.join(names())}.")
    return _REGISTRY[name]


def option_names(name: str) -> list[str]:
    """Option keywords of a mixer, besides width, heads, depth and layer."""
    return [key for key in inspect.signature(get(name).__init__).parameters if key not in _SHARED]


def build(name: str, *, width: int, heads: int, depth: int = 1, layer: int = 0, **options: Any) -> Mixer:
    """Build the mixer of one layer.

    Args:
        name: a registered name. width: model width C. heads: query heads H.
        depth: layers of the model. layer: index of this one.
        options: keywords of the mixer's constructor.

    Raises:
        ValueError: on an unknown name or option, or on values that do not fit together.
    """
    cls, known = get(name), option_names(name)
    for option in options:
        if option not in known:
            raise ValueError(f"attention {name!r} has no option {option!r}: expected one of {', '.join(known)}.")
    return cls(width=width, heads=heads, depth=depth, layer=layer, **options)
