"""Options of attentions, ``mixers.NAME``, from the annotations of their signatures, so that mixers need only torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zoo.config import ConfigError
from zoo.options.groups.entries import entry_model
from zoo.registry import ATTENTIONS
from zoo.schema.base import Options
from zoo.schema.messages import show


def attention_model(name: str) -> type[Options]:
    """Returns the options model of a registered attention."""
    return entry_model(ATTENTIONS, name, "attention")


def read_entry(entry: str, node: Any) -> dict[str, Any]:
    """Checks the options of ``mixers.ENTRY``; its key ``name`` says which attention it is, if not the entry's name.

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
