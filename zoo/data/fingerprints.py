"""Fingerprints of sources, cached for as long as the files under them do not change."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from zoo.data.documents import DataError, Source, expand
from zoo.files import replace_text

SETTLED = 2 * 10**9  # ns: file systems keep times to 2 s at worst, so that a younger file may change unseen


@dataclass(frozen=True)
class Stamp:
    """Digest that changes when the files of a source do, computed without reading them.

    Attributes:
        digest: SHA-256 over options and over path, size, times of change and inode of every file.
        newest: the latest of the times (ns).
    """

    digest: str
    newest: int


def stamp_files(options: Sequence[Any], files: Iterable[tuple[Path, str]]) -> Stamp:
    """Returns the stamp of (path, name) pairs, and of options that decide what is made of them."""
    digest, newest = hashlib.sha256(json.dumps(list(options)).encode()), 0
    for path, name in files:
        try:
            found = path.stat()
            values = [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]
        except OSError:
            values = [-1, 0, 0, 0]  # who reads the file says what is wrong with it
        newest = max(newest, values[1], values[2])
        digest.update(json.dumps([str(path.absolute()), name, *values]).encode())
    return Stamp(digest.hexdigest(), newest)


def source_stamp(source: Source) -> Stamp | None:
    """Returns the stamp of a source; None for one that has no ``stamp``."""
    stamp: Callable[[], Stamp] | None = getattr(source, "stamp", None)
    return None if stamp is None else stamp()


def known_fingerprint(source: Source, split: str, cache_dir: str | Path) -> str:
    """Returns the fingerprint of a split, from `cache_dir` if the source's stamp has not changed."""
    return remember(cache_dir, split, lambda: source_stamp(source), lambda: source.fingerprint(split))


def remember(
    cache_dir: str | Path,
    split: str,
    stamp: Callable[[], Stamp | None],
    compute: Callable[[], str],
) -> str:
    """Returns compute(), or its cached result if stamp() has not changed; one process computes while others wait.

    A file that changed within SETTLED before it was read could change once more with the same time. The result for such
    a file is used by processes that waited for it, not by a later start, as git does with entries of its index that are
    as young as the index itself. Where the cache cannot be written, everyone computes.
    """
    begun, before = time.time_ns(), stamp()
    if before is None:
        return compute()
    key = hashlib.sha256(json.dumps([2, split, before.digest]).encode()).hexdigest()[:32]
    kept = expand(cache_dir) / "fingerprints" / f"{key}.json"
    if (found := _read(kept, before.newest, begun)) is not None:
        return found
    with ExitStack() as stack:
        lock = FileLock(kept.with_suffix(".lock"))
        try:
            stack.enter_context(_nothing_left(kept.with_suffix(".lock")))
            stack.enter_context(lock)
        except OSError:
            return compute()
        if (found := _read(kept, before.newest, begun)) is not None:
            return found
        started = time.time_ns()
        result = compute()
        if stamp() == before:
            replace_text(kept, json.dumps({"fingerprint": result, "started": started, "finished": time.time_ns()}))
        return result


@contextmanager
def _nothing_left(lock: Path) -> Iterator[None]:
    """Make the folder of a lock file; if the block ends in a DataError, remove both, and folders above that it made.

    What others have put there stays. A lock that is removed under those who wait for it lets two of them compute.
    """
    made = [folder for folder in lock.parents if not folder.exists()]
    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except DataError:
        with suppress(OSError):
            lock.unlink()
            for folder in made:
                folder.rmdir()
        raise


def _read(kept: Path, changed: int, begun: int) -> str | None:
    """What is kept, if the last change was settled when it was read or it was read for a process that began by then."""
    try:
        content = json.loads(kept.read_text(encoding="utf-8"))
        if changed < content["started"] - SETTLED or begun <= content["finished"]:
            return str(content["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return None
