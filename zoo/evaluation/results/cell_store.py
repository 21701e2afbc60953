"""Store of finished cells of an evaluation, so that one that was killed resumes where it stopped."""

from __future__ import annotations

import gzip
import hashlib
import json
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

import zoo.evaluation
import zoo.generation
import zoo.mixers
import zoo.model
import zoo.runs
import zoo_kernels
from zoo.evaluation.results.models import SCHEMA
from zoo.files import replace_file
from zoo.runs.loaded_run import OpenedRun

FOLDER = "cells"
ROOMS = (zoo_kernels, zoo.mixers, zoo.model, zoo.generation, zoo.runs, zoo.evaluation)


@cache
def code_fingerprint() -> str:
    """Returns the SHA-256 over PyTorch's version and all code that a score depends on.

    Scores of older code are thus never read.
    """
    digest = hashlib.sha256(torch.__version__.encode())
    for room in ROOMS:
        folder = Path(str(room.__file__)).parent
        for file in sorted(folder.rglob("*.py")):
            digest.update(f"{room.__name__}/{file.relative_to(folder).as_posix()}".encode() + file.read_bytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class CellStore:
    """Results of one model by key in a folder; a key is all else that a result depends on.

    Attributes:
        folder: folder of results, RUN_DIR/eval.
        model: identifies the model and the device that it runs on.
        fresh: ignore earlier results, but store new ones.
    """

    folder: Path
    model: tuple[str, ...] = ()
    fresh: bool = False

    def keep(
        self, key: Any, make: Callable[[], dict[str, Any]], found: Callable[[], None] = lambda: None
    ) -> dict[str, Any]:
        """Returns the cell of a key, computed if it is not stored yet, with the ``seconds`` that this took.

        Args:
            key: what identifies the cell.
            make: computes its content.
            found: called instead if the cell is stored.
        """
        content = self.load(key)
        if content is not None:
            found()
        else:
            begun = time.monotonic()
            content = {**make(), "seconds": time.monotonic() - begun}
            self.save(key, content)
        return content

    def load(self, key: Any) -> dict[str, Any] | None:
        """Returns the stored cell of a key; None if there is none, or if it is damaged."""
        if self.fresh:
            return None
        try:
            content = json.loads(gzip.decompress(self._file(key).read_bytes()))
        except (OSError, ValueError, EOFError, zlib.error):
            return None
        return content if isinstance(content, dict) else None

    def save(self, key: Any, content: dict[str, Any]) -> None:
        """Stores a cell atomically."""
        packed = gzip.compress(json.dumps(content).encode(), mtime=0)
        replace_file(self._file(key), lambda unfinished: unfinished.write_bytes(packed))

    def _file(self, key: Any) -> Path:
        whole = json.dumps([SCHEMA, code_fingerprint(), self.model, key], sort_keys=True)
        return self.folder / FOLDER / f"{hashlib.sha256(whole.encode()).hexdigest()[:32]}.json.gz"


def open_cells(run: OpenedRun, fresh: bool = False) -> CellStore:
    """Opens the cells of a run's checkpoint on its device; ``fresh`` ignores earlier ones."""
    return CellStore(run.results, (run.sha256, str(run.device)), fresh)
