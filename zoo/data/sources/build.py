"""Construction of sources of documents from options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zoo.data.documents import DataError, Source
from zoo.registry import SOURCES, nothing_imported


def build_source(options: Mapping[str, Any]) -> Source:
    """Builds the source that ``options["kind"]`` names, with the other options as its keywords.

    Raises:
        ValueError: on an unknown kind; the message lists what exists.
    """
    keywords = dict(options)
    kind = keywords.pop("kind", None)
    if kind is None:
        raise DataError(
            f"data.source has no kind: expected one of {', '.join(SOURCES)}. A run folder of an earlier version is not "
            "read: train it again."
        )
    with nothing_imported():  # what was typed has been looked up by its schema
        source: Source = SOURCES.get(kind)(**keywords)
    return source
