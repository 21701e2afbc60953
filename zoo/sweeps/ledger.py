"""Ledger of a sweep: one JSON line per event, of which the last of a configuration counts."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal, get_args

from omegaconf import DictConfig

from zoo.config import to_dict

Status = Literal["started", "trained", "finished", "failed"]
FILE = "ledger.jsonl"
# Where things are kept and who watches, not what is computed.
WITHOUT_EFFECT = ("sweep", "resume", "logger", "data.cache_dir", "data.num_workers", "data.verify")


def config_key(config: DictConfig) -> str:
    """Returns the SHA-256 of a resolved training configuration, without options that do not influence the result."""
    plain = to_dict(config)
    for name in WITHOUT_EFFECT:
        *parents, last = name.split(".")
        node: Any = plain
        for parent in parents:
            node = node.get(parent, {})
        node.pop(last, None)
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def now() -> str:
    """Returns the time in UTC, ISO 8601, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


@dataclass(frozen=True)
class LedgerEntry:
    """One line of the ledger.

    Attributes:
        key: key of the resolved configuration.
        folder: folder of the run, relative to that of the sweep.
        reason: why the run failed, else None.
        seconds: time since this start of the run; None at the start.
        tasks: evaluations that are done, as in :attr:`zoo.sweeps.evaluations.EvalTask.label`.
    """

    key: str
    arm: str
    seed: int
    overrides: list[str]
    folder: str
    status: Status
    reason: str | None = None
    time: str = field(default_factory=now)
    seconds: float | None = None
    tasks: list[str] = field(default_factory=list)


class Ledger:
    """Ledger of a sweep's folder, which one process may write to: the one that has the folder's lock."""

    def __init__(self, folder: str | Path) -> None:
        self.file = Path(folder) / FILE
        self.entries = read_ledger(folder)

    def get(self, key: str) -> LedgerEntry | None:
        """Returns the latest entry of a configuration."""
        return self.entries.get(key)

    def owner(self, folder: str) -> LedgerEntry | None:
        """Returns the latest entry of the configuration whose run lies in ``folder``, relative to the sweep's."""
        return next((e for e in reversed(list(self.entries.values())) if e.folder == folder), None)

    def add(self, entry: LedgerEntry) -> None:
        """Appends a line and waits until it is on the disk."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("ab+") as file:
            start = file.seek(0, os.SEEK_END)
            file.seek(max(start - 1, 0))
            torn = file.read(1) not in (b"", b"\n")  # by a crash in the middle of a line
            line = json.dumps(asdict(entry), ensure_ascii=False) + "\n"
            file.write(b"\n" * torn + line.encode())
            file.flush()
            os.fsync(file.fileno())
        self.entries.pop(entry.key, None)
        self.entries[entry.key] = entry


def read_ledger(folder: str | Path) -> dict[str, LedgerEntry]:
    """Reads the latest entry of every configuration, in the order of writing; damaged lines are left out."""
    file = Path(folder) / FILE
    entries: dict[str, LedgerEntry] = {}
    for line in file.read_bytes().splitlines() if file.is_file() else []:
        try:
            entry = LedgerEntry(**json.loads(line))
        except (ValueError, TypeError):
            continue
        if entry.status in get_args(Status):
            entries.pop(entry.key, None)
            entries[entry.key] = entry
    return entries
