"""Search for local files: a file, a folder or a glob, the official splits among them, and files that are not read."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo.data.documents import DataError, Named, escape_name
from zoo.data.fingerprints import Stamp, stamp_files
from zoo.data.sources.readers import COMPRESSIONS, READERS, content_stem, is_readable
from zoo.data.sources.splits import find_titles, in_order, recognize_splits
from zoo.paths import expand, matches

ALL = "all"
SHOWN = 3  # names of files in a line

NamedFile = tuple[Path, str]


@dataclass(frozen=True)
class LocalFiles:
    """Files with text, by split, and those that are left out.

    Attributes:
        by_split: (path, name) pairs in the order of their names; files without official splits are under ALL.
        skipped: name and reason of each file that is not read.
        titles: names with words of splits that are not taken for splits.
    """

    by_split: dict[str, list[NamedFile]]
    skipped: list[tuple[str, str]]
    titles: list[str]

    def stamp(self, *options: Any) -> Stamp:
        """Returns a digest of the names, splits, sizes and times of all files, and of options; nothing is read."""
        counts = [[split, len(files)] for split, files in self.by_split.items()]
        return stamp_files([*options, counts], (pair for files in self.by_split.values() for pair in files))

    def splits_line(self) -> str:
        """Describes which files belong to which split."""
        return "; ".join(f"{split}: {_count(self.by_split[split])}" for split in in_order(self.by_split))

    def skipped_line(self) -> str:
        """Describes how many files are not read, a few of their names and why; empty if there are none."""
        if not self.skipped:
            return ""
        reasons = Counter(reason for _, reason in self.skipped)
        parts = [f"{_few([name for name, why in self.skipped if why == reason])} ({reason})" for reason in reasons]
        return f"{len(self.skipped):,} file{'s' * (len(self.skipped) > 1)} not read: {'; '.join(parts)}"


def find_files(path: str | None) -> LocalFiles:
    """Finds the files of a file, folder or glob; links are followed, hidden files and folders are left out.

    Raises:
        DataError: if there is no file with text; the message says what there is.
    """
    if path is None or str(path) == "":
        raise DataError(
            Named(
                "path", "{} is not set: expected a file, a folder or a glob of .txt, .md, .jsonl or .parquet files, "
            ),
            Named("path", "for example {}=book.txt"),
        )
    root = expand(path)
    if root.is_dir():
        skipped: list[tuple[str, str]] = []
        return _sort(list(_walk(root, skipped)), skipped, root, str(path))
    if root.is_file():
        return _sort([root], [], root.parent, str(path))
    found = [Path(match) for match in matches(str(root)) if os.path.isfile(match)]
    if not found:
        wrong = f"={path}: no such file or folder, and no file matches it as a glob; check the path"
        raise DataError(Named("path"), wrong)
    return _sort(found, [], Path(os.path.commonpath([str(match.parent) for match in found])), str(path))


def _walk(root: Path, skipped: list[tuple[str, str]]) -> Iterator[Path]:
    """Files below a folder; each folder once, whatever links to it, and by its own place if that is below too."""
    pending, links, seen = [root], list[Path](), set[tuple[int, int]]()
    while pending or links:
        folder = pending.pop() if pending else links.pop(0)
        try:
            place = folder.stat()
            entries = [] if (place.st_dev, place.st_ino) in seen else sorted(os.scandir(folder), key=lambda e: e.name)
        except OSError:
            skipped.append((_name(folder, root), "unreadable folder"))
            continue
        seen.add((place.st_dev, place.st_ino))
        for entry in entries:
            if entry.name.startswith("."):
                continue
            path = Path(entry.path)
            if path.is_dir():
                (links if entry.is_symlink() else pending).append(path)
            elif path.is_file():
                yield path
            else:
                skipped.append((_name(path, root), "broken link" if entry.is_symlink() else "no regular file"))


def _sort(files: list[Path], skipped: list[tuple[str, str]], root: Path, shown: str) -> LocalFiles:
    named = sorted(((path, _name(path, root)) for path in files), key=lambda pair: pair[1])
    known = [(path, name) for path, name in named if is_readable(path)]
    skipped = skipped + [(name, _unknown(path)) for path, name in named if not is_readable(path)]
    if not known:
        extensions = sorted({path.suffix.lower() or "(no extension)" for path in files})
        raise DataError(
            Named("path"),
            f"={shown}: no file with a supported extension ({', '.join(READERS)}; all but the last also with "
            f"{', '.join(COMPRESSIONS)}); found {', '.join(extensions) if extensions else 'no files at all'}",
        )
    empty = {name for path, name in known if not path.stat().st_size}
    return _divide([pair for pair in known if pair[1] not in empty], skipped + [(name, "empty") for name in empty])


def _divide(files: list[NamedFile], skipped: list[tuple[str, str]]) -> LocalFiles:
    stems = {name: os.path.join(os.path.dirname(name), content_stem(path)) for path, name in files}
    splits = recognize_splits(stems)
    if not splits:
        return LocalFiles({ALL: files}, skipped, find_titles(stems))
    by_split = {split: [pair for pair in files if splits.get(pair[1]) == split] for split in in_order(splits.values())}
    strangers = [(name, "of no split") for name in stems if name not in splits]
    return LocalFiles(by_split, skipped + strangers, [])


def _unknown(path: Path) -> str:
    return f"unknown suffix {''.join(path.suffixes[-2:])}" if path.suffix else "no suffix"


def _name(path: Path, root: Path) -> str:
    return escape_name(path.relative_to(root).as_posix())


def _count(files: list[NamedFile]) -> str:
    return files[0][1] if len(files) == 1 else f"{len(files):,} files"


def _few(names: list[str]) -> str:
    rest = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {rest:,} more" if rest > 0 else "")
