"""Options models of registered entries: their own model, or one of their signature."""

from __future__ import annotations

from functools import cache
from typing import Any, TypeVar

from zoo.config import ConfigError
from zoo.registry import Registry
from zoo.schema.base import Options, model_of_signature
from zoo.schema.messages import sentence, show, suggest

OptionsType = TypeVar("OptionsType", bound=Options)


def entry_model(
    registry: Registry[Any],
    name: Any,
    path: str,
    base: type[OptionsType] = Options,  # type: ignore[assignment]
) -> type[OptionsType]:
    """Returns the options model of a registered entry.

    Args:
        registry: registry of the entry.
        name: name of the entry.
        path: path of the option that names it, for messages.
        base: model with the options that all entries share.

    Raises:
        ConfigError: if there is no such entry, or if its signature cannot be read.
    """
    if name not in registry:
        raise ConfigError(f"{path}={show(name)}: unknown {registry.kind}; {sentence(suggest(str(name), registry))}")
    entry, model = registry.get(name), registry.options(name)
    if model is None and isinstance(entry, type) and issubclass(entry, Options):
        model = entry  # it has its options as its fields
    return model if model is not None else _model(entry, name, registry.shared, base)


@cache
def _model(entry: Any, name: str, shared: tuple[str, ...], base: type[OptionsType]) -> type[OptionsType]:
    try:
        return model_of_signature(entry, name, shared, base)
    except (NameError, TypeError, ValueError) as error:
        where = f"{entry.__module__}.{entry.__qualname__}"
        raise ConfigError(f"{where}: the annotations of its options cannot be read: {error}.") from error
