"""Fingerprints of sources, remembered for as long as the files under them stay as they were."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from filelock import FileLock

from zoo.data.documents import Source, expand
from zoo.files import replace_text

SETTLED = 2 * 10**9  # ns: file systems keep times to 2 s at worst, so that a younger file may change unseen


def file_stamp(path: Path) -> list[Any]:
    """What changes when a file does, without reading it: its place, size, times of change (ns) and inode."""
    try:
        found = path.stat()
    except OSError:
        return [str(path.absolute()), -1, 0, 0, 0]  # who reads it says what is wrong
    return [str(path.absolute()), found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def newest(stamps: Iterable[list[Any]]) -> int:
    """The latest time of change (ns) in stamps of files."""
    return max((max(stamp[2], stamp[3]) for stamp in stamps), default=0)


def source_stamp(source: Source) -> tuple[list[Any], list[list[Any]]] | None:
    """Options and stamps of files that decide what a source holds; None for one that cannot tell."""
    stamp: Callable[[], tuple[list[Any], list[list[Any]]]] | None = getattr(source, "stamp", None)
    return None if stamp is None else stamp()


def known_fingerprint(source: Source, split: str, cache_dir: str | Path) -> str:
    """The fingerprint of a split, from `cache_dir` if the source has a stamp and it is that of an earlier time."""

    def stamp() -> tuple[list[Any], list[list[Any]]] | None:
        return source_stamp(source)

    return remember(cache_dir, split, stamp, lambda: source.fingerprint(split))


def remember(
    cache_dir: str | Path,
    split: str,
    stamp: Callable[[], tuple[list[Any], list[list[Any]]] | None],
    compute: Callable[[], str],
) -> str:
    """compute(), or what it gave when stamp() was the same; one process of several computes, the others wait.

    A file that changed within SETTLED before it was read could change once more and keep its time. What was read of
    such a file is good for those who waited for it, not for a later start, as git does with entries of its index that
    are as young as the index itself. Where the cache cannot be written, everyone computes.
    """
    begun, before = time.time_ns(), stamp()
    if before is None:
        return compute()
    key = hashlib.sha256(json.dumps([2, split, before]).encode()).hexdigest()[:32]
    kept = expand(cache_dir) / "fingerprints" / f"{key}.json"
    changed = newest(before[1])
    if (found := _read(kept, changed, begun)) is not None:
        return found
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(kept.with_suffix(".lock"))
        lock.acquire()
    except OSError:
        return compute()
    try:
        if (found := _read(kept, changed, begun)) is not None:
            return found
        started = time.time_ns()
        result = compute()
        if stamp() == before:
            replace_text(kept, json.dumps({"fingerprint": result, "started": started, "finished": time.time_ns()}))
        return result
    finally:
        lock.release()


def _read(kept: Path, changed: int, begun: int) -> str | None:
    """What is kept, if the last change was settled when it was read or it was read for a process that began by then."""
    try:
        content = json.loads(kept.read_text(encoding="utf-8"))
        if changed < content["started"] - SETTLED or begun <= content["finished"]:
            return str(content["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return None
