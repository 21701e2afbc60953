"""Options of attentions, ``mixers.NAME``: with the types of their signatures, so that mixers need nothing but torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zoo.config import ConfigError
from zoo.options.entries import entry_model
from zoo.registry import ATTENTIONS
from zoo.schema.base import Options
from zoo.schema.messages import show


def attention_model(name: str) -> type[Options]:
    """Options of the registered attention ``name``."""
    return entry_model(ATTENTIONS, name, "attention")


def read_entry(entry: str, node: Any) -> dict[str, Any]:
    """Checked options of ``mixers.ENTRY``; its key ``name`` says which attention it is, if not the entry's name.

    Raises:
        ConfigError: on an unknown attention or option, and on values of other types.
    """
    path = f"mixers.{entry}"
    if not isinstance(node, Mapping):
        raise ConfigError(f"{path}={show(node)}: expected options below it.")
    options = {key: value for key, value in node.items() if key != "name"}
    name = node.get("name", entry)
    model: type[Options] = entry_model(ATTENTIONS, name, f"{path}.name")
    read = model.read(options, path).model_dump(exclude_unset=True)
    return {**({"name": name} if "name" in node else {}), **read}
