"""Articles of WikiText, whose files hold one line a row."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from zoo.data.documents import Document

HEADING = re.compile(r" = (?P<title>(?!= ).*[^ ].*(?<! =)) = \n?")


def join_articles(rows: Iterable[str], prefix: str = "") -> Iterator[Document]:
    r"""Joins the lines of WikiText to articles: an article starts at a line ` = Title = ` between two blank lines.

    Blank lines come as empty rows and are written as " \n", as in the published files. Lines before the first heading
    form an article of their own.
    """
    lines: list[str] = []
    title, number, before = "", 0, ""
    pending: str | None = None
    for row in _with_end(rows):
        if pending is not None:
            match = HEADING.fullmatch(pending)
            if match and not before.strip() and not row.strip():
                if "".join(lines).strip():
                    yield Document(f"{prefix}/{number} {title}".rstrip(), "".join(lines))
                    number += 1
                lines, title = [], match["title"]
            lines.append(_line(pending))
            before = pending
        pending = row
    if "".join(lines).strip():
        yield Document(f"{prefix}/{number} {title}".rstrip(), "".join(lines))


def _with_end(rows: Iterable[str]) -> Iterator[str]:
    yield from rows
    yield ""


def _line(row: str) -> str:
    if not row.strip():
        return " \n"
    return row if row.endswith("\n") else row + "\n"
