"""Files that are written atomically, and the metrics file of a run."""

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
    """Raised for a file that cannot be written; the message says which, why, and what to do."""


@contextmanager
def writing(file: Path, remedy: str = "Give a folder that can be written to") -> Iterator[None]:
    """Context manager that turns errors of writing ``file`` into one line that names it.

    Args:
        file: the file to be written.
        remedy: what to do where writing is not allowed.

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
    """Explains why a file could not be written, and what to do about it."""
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
    """Returns whether files can be made in a folder, by trying: permissions do not show that a disk is read-only."""
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
    """Replaces ``file`` atomically by a temporary file beside it and a rename; a failed attempt leaves nothing.

    Args:
        file: the file to be replaced.
        write: writes the file whose path it is given.
        durable: wait until the disk has it, so that it survives a crash of the machine.

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
    """Writes a small text file atomically."""
    replace_file(file, lambda unfinished: unfinished.write_text(text, encoding="utf-8"))


def sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk; Windows cannot for folders."""
    if os.name != "posix":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """Reads the rows of a run's metrics.jsonl.

    Lines cut off by a crash are left out, and a missing file has no rows.
    """
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
