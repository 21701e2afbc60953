"""Cells of an evaluation that are finished, so that one that was killed goes on where it stopped."""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from zoo.evaluation.results import SCHEMA
from zoo.files import replace_file

FOLDER = "cells"
ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("kernels", "zoo/mixers", "zoo/model", "zoo/generation", "zoo/evaluation")


@cache
def code_fingerprint() -> str:
    """SHA-256 over PyTorch's version and all code that a score depends on: older code's scores are never read."""
    digest = hashlib.sha256(torch.__version__.encode())
    for room in ROOMS:
        for file in sorted((ROOT / room).rglob("*.py")):
            digest.update(file.relative_to(ROOT).as_posix().encode() + file.read_bytes())
    return digest.hexdigest()


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
        except (OSError, ValueError, EOFError, zlib.error):
            return None
        return content if isinstance(content, dict) else None

    def save(self, key: Any, content: dict[str, Any]) -> None:
        """Keep a cell; it appears whole or not at all."""
        packed = gzip.compress(json.dumps(content).encode(), mtime=0)
        replace_file(self._file(key), lambda unfinished: unfinished.write_bytes(packed))

    def _file(self, key: Any) -> Path:
        name = hashlib.sha256(json.dumps([SCHEMA, code_fingerprint(), key], sort_keys=True).encode()).hexdigest()[:32]
        return self.folder / FOLDER / f"{name}.json.gz"
