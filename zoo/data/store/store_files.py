"""Files of a token store: layout, metadata, and checks for damage."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

FORMAT = 2
FILES = ("tokens.bin", "offsets.bin", "counts.bin", "names.bin", "name_ends.bin")
INDEX_DTYPE = "<i8"
BLOCK, BLOCKS = 4096, 8  # bytes, and how many of a file are compared whenever it is opened


def write_meta(folder: Path, key: str, eos: int, dtype: str) -> None:
    """Writes the metadata of a finished store; this is the one time that all of its files are hashed."""
    files = {name: _describe(folder / name) for name in FILES}
    meta = {"format": FORMAT, "key": key, "eos": eos, "dtype": dtype, "files": files}
    meta["sha256"] = _checksum(meta)
    (folder / "meta.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")


def read_meta(folder: Path) -> dict[str, Any]:
    """Reads the metadata of a store."""
    meta: dict[str, Any] = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    return meta


def damage(folder: Path, verify: bool) -> str | None:
    """Describes what is wrong with a store, None if nothing is.

    Sizes and some blocks of each file are checked, with `verify` all of it.
    """
    try:
        meta = read_meta(folder)
        expected = meta.pop("sha256")
        if expected == _checksum(meta) and meta["format"] < FORMAT:
            return f"has the older format {meta['format']}"
        if expected != _checksum(meta) or meta["format"] != FORMAT or meta["key"] != folder.name:
            return "is damaged (meta.json does not match its checksum)"
        for name in FILES:
            size = (folder / name).stat().st_size
            if size != meta["files"][name]["size"]:
                return f"is damaged ({name} has {size} bytes, expected {meta['files'][name]['size']})"
        for name in FILES:
            found = _describe(folder / name) if verify else {"blocks": _hash_blocks(folder / name)}
            if any(meta["files"][name][field] != value for field, value in found.items()):
                return f"is damaged ({name} does not match its checksum)"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"is damaged ({type(error).__name__}: {error})"
    return None


def _describe(path: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**22):
            digest.update(chunk)
    return {"size": path.stat().st_size, "sha256": digest.hexdigest(), "blocks": _hash_blocks(path)}


def _hash_blocks(path: Path) -> str:
    """SHA-256 over blocks spread evenly from the first to the last: holes, torn copies and mixed-up files show."""
    digest = hashlib.sha256()
    size = path.stat().st_size
    starts = [max(0, size - BLOCK) * number // (BLOCKS - 1) for number in range(BLOCKS)]
    with path.open("rb", buffering=0) as file:
        for start in starts:
            file.seek(start)
            digest.update(file.read(BLOCK))
    return digest.hexdigest()


def _checksum(meta: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()
