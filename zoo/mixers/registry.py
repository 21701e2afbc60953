"""Registry of mixers by name."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from types import NoneType
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

from zoo.mixers.base import Mixer
from zoo.mixers.parts.options import allows, bounds
from zoo.registry import ATTENTIONS

SHARED = ATTENTIONS.shared
_KINDS: dict[Any, str] = {int: "a whole number", float: "a finite number", bool: "true or false", str: "a word"}

MixerType = TypeVar("MixerType", bound=type[Mixer])


def register(name: str) -> Callable[[MixerType], MixerType]:
    """Class decorator that registers a mixer as ``name``."""
    return ATTENTIONS.register(name)


def names() -> list[str]:
    """Returns all registered names, sorted."""
    return ATTENTIONS.names()


def get(name: str) -> type[Mixer]:
    """Returns the class of a mixer by name.

    Raises:
        ValueError: if there is none; the message lists what exists.
    """
    found: type[Mixer] = ATTENTIONS.get(name)
    return found


def option_names(name: str) -> list[str]:
    """Names of a mixer's options: its keywords besides width, heads, depth and layer."""
    return [key for key in inspect.signature(get(name).__init__).parameters if key not in SHARED]


def build(name: str, *, width: int, heads: int, depth: int = 1, layer: int = 0, **options: Any) -> Mixer:
    """Builds the mixer of one layer.

    Args:
        name: a registered name, see :func:`names`.
        width: model width C.
        heads: number of query heads H.
        depth: number of layers of the model.
        layer: index of this layer.
        options: keywords of the mixer's constructor.

    Raises:
        ValueError: on an unknown name or option, or on values that do not fit its annotation or each other.
    """
    cls, known = get(name), option_names(name)
    hints = get_type_hints(cls.__init__, include_extras=True)
    for option, value in options.items():
        if option not in known:
            raise ValueError(f"attention {name!r} has no option {option!r}: expected one of {', '.join(known)}.")
        if not _fits(value, hints.get(option)):
            raise ValueError(f"{name}: {option}={value!r}: expected {_describe(hints[option])}.")
    return cls(width=width, heads=heads, depth=depth, layer=layer, **options)


def _fits(value: Any, hint: Any) -> bool:
    """Whether an option has the type and range of its annotation; annotations of other kinds take everything."""
    if get_origin(hint) is Annotated:
        return _fits(value, get_args(hint)[0]) and all(allows(part, value) for part in get_args(hint)[1:])
    if hint in _KINDS:
        if hint is str or hint is bool:
            return isinstance(value, hint)
        number = isinstance(value, Integral if hint is int else Real) and not isinstance(value, bool)
        return number and math.isfinite(value)
    if hint is NoneType:
        return value is None
    if get_origin(hint) is list:
        return isinstance(value, Sequence) and all(_fits(item, get_args(hint)[0]) for item in value)
    return not get_args(hint) or any(_fits(value, one) for one in get_args(hint))


def _describe(hint: Any, limits: str = "") -> str:
    if get_origin(hint) is Annotated:
        return _describe(get_args(hint)[0], bounds(get_args(hint)[1:]))
    if get_origin(hint) is list:
        return f"a list of which each is {_describe(get_args(hint)[0])}"
    if get_args(hint):
        return " or ".join(_describe(one, limits) for one in get_args(hint))
    return "null" if hint is NoneType else _KINDS.get(hint, str(hint)) + limits
