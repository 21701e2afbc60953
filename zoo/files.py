"""Files that are whole or absent, and the metrics file of a run."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class WriteError(OSError, ValueError):
    """A file that cannot be written; the message says which, why, and what to do."""


@contextmanager
def writing(file: Path, remedy: str = "Give a folder that can be written to") -> Iterator[None]:
    """Errors of writing ``file`` as one line that names it.

    Args:
        file: what is written.
        remedy: what to do where it is not allowed.

    Raises:
        WriteError: in place of any OSError inside.
    """
    try:
        yield
    except WriteError:
        raise
    except OSError as error:
        raise WriteError(f"{file} could not be written: {explain_write(error, file, remedy)}") from error


def explain_write(error: OSError, file: Path, remedy: str) -> str:
    """Why a file could not be written, and what to do about it."""
    reason = error.strerror or str(error) or type(error).__name__
    if error.errno not in FULL:
        return f"{reason}. {remedy}."
    free = ""
    with suppress(OSError, StopIteration):
        place = next(parent for parent in Path(os.path.abspath(file)).parents if parent.is_dir())
        free = f", {shutil.disk_usage(place).free / 2**20:,.1f} MiB are free"
    limit = "; a limit on the size of files (ulimit -f) counts too" if error.errno == errno.EFBIG else ""
    return f"space on the disk is short ({reason}{free}{limit}). Free some, then give the same command or resume=."


def is_writable(folder: Path) -> bool:
    """Whether files can be made in a folder, which is tried: permissions do not tell of a disk that is read-only."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    probe = folder / f".{os.getpid()}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        return True
    except OSError:
        return False
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)
            for path in missing:
                path.rmdir()


def replace_file(file: Path, write: Callable[[Path], Any], durable: bool = False) -> None:
    """Make ``file`` by write(temporary file beside it) and one rename; nothing is left of an attempt that fails.

    ``durable``: wait until the disk has it, so that it survives a crash of the machine.

    Raises:
        WriteError: if the folder or the disk does not allow it.
    """
    unfinished = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(unfinished)
            if durable:
                sync(unfinished)
            os.replace(unfinished, file)
            if durable:
                sync(file.parent)
        finally:
            with suppress(OSError):
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
