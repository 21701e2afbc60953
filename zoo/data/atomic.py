"""Folders that are either complete or absent, even if several processes build them or one dies."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout

from zoo.files import sync, writing


def build_once(folder: Path, ready: Callable[[], bool], build: Callable[[Path], None]) -> None:
    """Ensures that `folder` exists with ready() true, built by this process or by another.

    build() is given a temporary folder, a sibling that is flushed to disk and renamed in one step. A lock file beside
    the folder lets a second builder wait; leftovers of a killed builder are removed. A folder that is there but not
    ready is replaced.

    Raises:
        WriteError: if the folder cannot be written.
    """
    with writing(folder, "Set data.cache_dir or ZOO_CACHE to a folder that can be written to"):
        _build_once(folder, ready, build)


def _build_once(folder: Path, ready: Callable[[], bool], build: Callable[[Path], None]) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.parent / f"{folder.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"waiting for another process to build {folder}", file=sys.stderr, flush=True)
        lock.acquire()
    try:
        _remove_leftovers(folder)
        if ready():
            return
        unfinished = folder.parent / f"{folder.name}.tmp-{os.getpid()}"
        unfinished.mkdir()
        try:
            build(unfinished)
            _flush(unfinished)
            _replace(folder, unfinished)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    finally:
        lock.release()


def _replace(folder: Path, unfinished: Path) -> None:
    if folder.exists():
        # A rename cannot replace a folder that is not empty, and processes may still map the old files: move it aside.
        old = folder.parent / f"{folder.name}.tmp-old-{os.getpid()}"
        os.rename(folder, old)
        os.rename(unfinished, folder)
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.rename(unfinished, folder)
    sync(folder.parent)


def _remove_leftovers(folder: Path) -> None:
    for leftover in folder.parent.glob(f"{folder.name}.tmp-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _flush(folder: Path) -> None:
    for path in folder.iterdir():
        sync(path)
    sync(folder)
