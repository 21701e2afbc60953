"""Options of attentions, ``mixers.NAME``: with the types of their signatures, so that mixers need nothing but torch."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from zoo import mixers
from zoo.config import ConfigError
from zoo.mixers.registry import SHARED
from zoo.schema.base import Options, model_of_signature
from zoo.schema.messages import sentence, show, suggest


@cache
def attention_model(name: str) -> type[Options]:
    """Options of the registered attention ``name``."""
    return model_of_signature(mixers.get(name), name, SHARED)


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
    if name not in mixers.names():
        raise ConfigError(
            f"{path}.name={show(name)}: unknown attention; {sentence(suggest(str(name), mixers.names()))}"
        )
    read = attention_model(name).read(options, path).model_dump(exclude_unset=True)
    return {**({"name": name} if "name" in node else {}), **read}
