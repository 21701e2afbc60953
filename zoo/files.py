"""Files that are whole or absent, and the metrics file of a run."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


def replace_file(file: Path, write: Callable[[Path], Any], durable: bool = False) -> None:
    """Make ``file`` by write(temporary file beside it) and one rename; nothing is left of an attempt that fails.

    ``durable``: wait until the disk has it, so that it survives a crash of the machine.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        write(unfinished)
        if durable:
            sync(unfinished)
        os.replace(unfinished, file)
        if durable:
            sync(file.parent)
    finally:
        unfinished.unlink(missing_ok=True)


def replace_text(file: Path, text: str) -> None:
    """Write a small text file in one piece."""
    replace_file(file, lambda unfinished: unfinished.write_text(text, encoding="utf-8"))


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk; Windows cannot for folders."""
    if os.name != "posix":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """Rows of a run's metrics.jsonl; lines cut off by a crash are left out, no file gives none."""
    rows = []
    if file.is_file():
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict) and "step" in row:
                rows.append(row)
    return rows
