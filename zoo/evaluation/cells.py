"""Cells of an evaluation that are finished, so that one that was killed goes on where it stopped."""

from __future__ import annotations

import gzip
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo.evaluation.results import SCHEMA
from zoo.files import replace_file

FOLDER = "cells"


@dataclass(frozen=True)
class CellStore:
    """Results by key in a folder; a key is all that a result depends on, the model and the questions included.

    Attributes:
        folder: RUN_DIR/eval. fresh: look at no earlier result, but keep new ones.
    """

    folder: Path
    fresh: bool = False

    def load(self, key: Any) -> dict[str, Any] | None:
        """The finished cell of a key; None if there is none, or if it is damaged."""
        if self.fresh:
            return None
        try:
            content = json.loads(gzip.decompress(self._file(key).read_bytes()))
        except (OSError, ValueError, EOFError):
            return None
        return content if isinstance(content, dict) else None

    def save(self, key: Any, content: dict[str, Any]) -> None:
        """Keep a cell; it appears whole or not at all."""
        packed = gzip.compress(json.dumps(content).encode(), mtime=0)
        replace_file(self._file(key), lambda unfinished: unfinished.write_bytes(packed))

    def _file(self, key: Any) -> Path:
        name = hashlib.sha256(json.dumps([SCHEMA, key], sort_keys=True).encode()).hexdigest()[:32]
        return self.folder / FOLDER / f"{name}.json.gz"
