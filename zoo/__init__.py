"""Attention Zoo: decoder language models whose attention is a choice, layer by layer."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zoo import mixers
    from zoo.conformance import check
    from zoo.model.checkpoint import load

__all__ = ["check", "load", "mixers"]


def __getattr__(name: str) -> Any:
    """Import what is asked for, so that a program can say what went wrong before torch is there."""
    if name == "mixers":
        return import_module("zoo.mixers")
    if name == "check":
        return import_module("zoo.conformance").check
    if name == "load":
        return import_module("zoo.model.checkpoint").load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
