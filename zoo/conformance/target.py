"""Module that is meant by an instance, a factory or a name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from torch import nn

from zoo import mixers

WIDTH_NAMES = ("width", "dim", "d_model", "hidden_size", "embed_dim")  # of the parameter of a factory, the first it has
HEADS_NAMES = ("heads", "num_heads", "n_heads")
NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)

Factory = Callable[..., nn.Module]


def make_module(
    target: nn.Module | Factory | str, width: int, heads: int, options: Mapping[str, Any]
) -> tuple[str, nn.Module]:
    """Returns name and module that ``target`` stands for.

    Args:
        target: a module; a class or function that makes one; a registered attention; or ``PACKAGE.MODULE:NAME``.
        width: model width C, passed to a factory as the first of WIDTH_NAMES that it takes.
        heads: passed as the first of HEADS_NAMES that it takes.
        options: keywords of the factory.

    Raises:
        ValueError: if there is no such target, or it cannot be built with these options.
    """
    if isinstance(target, str) and ":" not in target:
        return target, mixers.build(target, width=width, heads=heads, **options)
    found = find_object(target) if isinstance(target, str) else target
    if isinstance(found, nn.Module):
        name = type(found).__name__
        if options:
            raise ValueError(f"{', '.join(options)}: {name} is a module and takes no options: give its class.")
        return name, found
    if not callable(found):
        raise ValueError(f"{target!r} is a {type(found).__name__}: expected a module, or what makes one.")
    name = getattr(found, "__name__", type(found).__name__)
    given = keywords_for(found, name, width, heads, options)
    try:
        made = found(**given)
    except Exception as error:
        shown = ", ".join(f"{key}={value!r}" for key, value in given.items())
        raise ValueError(f"{name}({shown}) raises {one_line(error)}") from error
    if not isinstance(made, nn.Module):
        raise ValueError(f"{name} makes a {type(made).__name__}: expected a torch.nn.Module.")
    return name, made


def find_object(text: str) -> Any:
    """Imports the object that ``PACKAGE.MODULE:NAME`` names.

    Raises:
        ValueError: if it cannot be imported or has no such name.
    """
    module, _, name = text.partition(":")
    if not module or not name:
        raise ValueError(f"{text!r}: expected PACKAGE.MODULE:NAME.")
    try:
        found = import_module(module)
    except Exception as error:
        raise ValueError(f"{text}: importing {module} raises {one_line(error)}") from error
    if not hasattr(found, name):
        raise ValueError(f"{text}: {module} has no {name}: expected the name of a class, a function or a module.")
    return getattr(found, name)


def keywords_for(factory: Factory, name: str, width: int, heads: int, options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the keywords of a call of ``factory``: those of width and heads that it takes, and all options.

    Raises:
        ValueError: on an option that it does not take, and where it needs more.
    """
    signature = inspect.signature(factory)
    known = [key for key, parameter in signature.parameters.items() if parameter.kind in NAMED]
    given: dict[str, Any] = {}
    for names, value in ((WIDTH_NAMES, width), (HEADS_NAMES, heads)):
        if (key := next((key for key in names if key in known), None)) and not set(names) & set(options):
            given[key] = value
    given |= options
    try:
        signature.bind(**given)
    except TypeError as error:
        raise ValueError(f"{name}: {error}; it takes {', '.join(known) or 'nothing'}.") from None
    return given


def one_line(error: BaseException, longest: int = 200) -> str:
    """Formats type and text of an exception on one line."""
    text = " ".join(str(error).split())
    text = text if len(text) <= longest else f"{text[: longest - 1]}…"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
