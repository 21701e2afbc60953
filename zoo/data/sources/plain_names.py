"""Folders under plain names, for libraries that read ``[`` in a path as a pattern, or ``::`` as an archive.

The ``datasets`` package is one; it resolves links to a folder, too, so that a folder of links to the files is needed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from zoo.data.atomic import build_once
from zoo.data.documents import CACHE, expand

PLAIN = re.compile(r"[\w./ ,=@+~'()!-]*")  # what no library takes for anything else


def is_plain(path: Path) -> bool:
    """Returns whether every library takes a path literally; names that are not UTF-8 are not plain."""
    return PLAIN.fullmatch(str(path)) is not None


def plain_folder(folder: Path, cache_dir: Path) -> Path:
    """Returns a folder with the files of ``folder`` under a plain name: itself, or one of links that stays in a cache.

    Args:
        folder: folder whose own name may have any characters.
        cache_dir: folder for the links, if it has a plain name itself.
    """
    whole = folder.resolve()
    if is_plain(whole):
        return folder
    files = sorted(str(path.relative_to(whole)) for path in whole.rglob("*") if path.is_file())

    def link(unfinished: Path) -> None:
        for file in files:
            (unfinished / file).parent.mkdir(parents=True, exist_ok=True)
            (unfinished / file).symlink_to(whole / file)

    linked = _place(cache_dir, [str(whole), *files])
    build_once(linked, linked.is_dir, link)
    return linked


def plain_cache(folder: Path) -> Path:
    """Returns ``folder``, or a link to it that has a plain name."""
    whole = Path(os.path.abspath(folder))
    if is_plain(whole):
        return folder
    whole.mkdir(parents=True, exist_ok=True)
    link = _place(whole, [str(whole)])
    link.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        link.symlink_to(whole, target_is_directory=True)
    return link


def _place(cache_dir: Path, recipe: Sequence[str]) -> Path:
    """Where links are put: in the first cache that has a plain name."""
    roots = (cache_dir, expand(CACHE), Path(tempfile.gettempdir()) / f"attention-zoo-{os.getuid()}")
    root = next((root for root in roots if is_plain(root.resolve())), roots[-1])
    return root / "plain_names" / hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:32]
