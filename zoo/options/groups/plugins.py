"""Option ``plugins`` of every program, which is read before all others."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator

from zoo.config import require_plugins

PLUGINS = (
    "Python packages that are imported first and register what can then be chosen by name, as plugins=[my_package]"
)


def listed(value: Any) -> Any:
    """Wraps a single name in a list."""
    return [value] if isinstance(value, str) else [] if value is None else value


def _imported(names: list[str]) -> list[str]:
    require_plugins(names)  # those of the command line are: what else asks for some came too late
    return names


PluginNames = Annotated[list[str], BeforeValidator(listed), AfterValidator(_imported)]
