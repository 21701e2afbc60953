"""Official splits of files: train, validation and test by the names of files and of the folders above them."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import PurePosixPath

from zoo.data.documents import SPLITS

WORDS: dict[str, str] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
NO_WORDS = re.compile(r"[\W\d_]+")


def recognize_splits(names: Mapping[str, str]) -> dict[str, str]:
    """Returns the split of each file that belongs to one; empty if the files have no official splits.

    A folder that is called like a split (train, training; validation, valid, val, dev; test, testing, eval,
    evaluation), or a file that is (train.jsonl, test-00000-of-00001.parquet), counts by itself. A name with such a word
    in it between `.`, `_`, `-`, spaces or digits (wiki.valid.txt, squad_dev) counts only if most files have one, since
    it can also be a title. Nothing is a split unless train and another are found.

    Args:
        names: path of each file below the folder that was asked for, and the part of it without suffixes of formats.
    """
    plain = {name: split for name, stem in names.items() if (split := _plain(stem))}
    worded = {name: split for name, stem in names.items() if (split := plain.get(name) or _worded(stem))}
    for found in (worded, plain):
        enough = found is plain or 2 * len(found) > len(names)
        if enough and "train" in found.values() and len(set(found.values())) > 1:
            return found
    return {}


def _plain(stem: str) -> str | None:
    """The split of a folder that has its name, the outermost first, or of a file called so but for numbers."""
    *folders, name = PurePosixPath(stem).parts
    for folder in folders:
        if folder.lower() in WORDS:
            return WORDS[folder.lower()]
    words = [word for word in NO_WORDS.split(name.lower()) if word not in ("", "of", "v")]
    return WORDS.get(words[0]) if len(words) == 1 else None


def _worded(stem: str) -> str | None:
    """The split that words of the name say, or those of the innermost folder that has one; None for two at once."""
    for part in reversed(PurePosixPath(stem).parts):
        found = {WORDS[word] for word in NO_WORDS.split(part.lower()) if word in WORDS}
        if found:
            return found.pop() if len(found) == 1 else None
    return None


def find_titles(names: Mapping[str, str]) -> list[str]:
    """Returns names of files without official splits that might be meant as such: a train and another occur."""
    found = {name: split for name, stem in names.items() if (split := _worded(stem))}
    return list(found) if "train" in found.values() and len(set(found.values())) > 1 else []


def in_order(splits: Collection[str]) -> list[str]:
    """Sorts names of splits, train first."""
    return [split for split in SPLITS if split in splits]
