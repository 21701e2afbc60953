"""Text of ``--help``: every option of a program by group, with its default, meaning and type."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from zoo.config import CONFIGS
from zoo.options.choices import choices
from zoo.plugins import config_folders
from zoo.schema.messages import describe, model_below, show

NAMES = 34  # characters of the column of names
COMMENT = re.compile(r"^\s*(?P<key>\w+):[^#]*(?:#\s*(?P<comment>.*\S))?\s*$")


@dataclass(frozen=True)
class OptionRow:
    """One option: its path, its default, what it means and what it takes."""

    path: str
    default: Any
    meaning: str
    takes: str


def option_rows(model: type[BaseModel], values: Mapping[str, Any], path: str = "") -> Iterator[OptionRow]:
    """Rows of all options of a model, those of the models below it included.

    Args:
        model: model of a group, or of a whole configuration.
        values: defaults, as they are composed.
        path: path of the model, as ``optimizer``.
    """
    for name, field in model.model_fields.items():
        if name not in values:
            continue
        value, full = values[name], f"{path}.{name}" if path else name
        below = model_below(field.annotation, value)
        if below is not None and isinstance(value, Mapping):
            yield from option_rows(below, value, full)
        else:
            yield OptionRow(full, value, field.description or "", describe(field))


def group_rows(program: str, chosen: Sequence[str] = ()) -> Iterator[OptionRow]:
    """Rows of the groups of configs/PROGRAM.yaml, whose files can be chosen by name.

    Args:
        program: ``train``, ``eval``, or another file of configs/.
        chosen: overrides as typed, which take the place of defaults.
    """
    content = yaml.safe_load((CONFIGS / f"{program}.yaml").read_text(encoding="utf-8"))
    given = dict(override.partition("=")[::2] for override in chosen)
    for entry in content["defaults"]:
        for group, default in entry.items() if isinstance(entry, dict) else ():
            if group.startswith("override "):
                continue
            yield _group_row(group, given.get(group, default))
            folders = [folder / group for folder in config_folders() if (folder / group).is_dir()]
            for nested in sorted({p.name for folder in folders for p in folder.iterdir() if p.is_dir()}):
                yield _group_row(f"{group}/{nested}", given.get(f"{group}/{nested}"))


def _group_row(group: str, default: Any) -> OptionRow:
    return OptionRow(group, default, ", ".join(choices(group)), "")


def yaml_comments(file: Path) -> dict[str, str]:
    """Returns the comments behind the values of a file of configs/, by key."""
    found = (COMMENT.match(line) for line in file.read_text(encoding="utf-8").splitlines())
    return {match["key"]: match["comment"] for match in found if match and match["comment"]}


def signature_rows(
    model: type[BaseModel], values: Mapping[str, Any], path: str, file: Path | None
) -> Iterator[OptionRow]:
    """Yields rows of options from a signature, with the meanings of the comments of a file, if there is one."""
    comments = {} if file is None else yaml_comments(file)
    for name, field in model.model_fields.items():
        if name in values:
            takes = describe(field)  # where it is text, the comment lists the words
            yield OptionRow(
                f"{path}.{name}",
                values[name],
                comments.get(name, field.description or ""),
                takes if "text" not in takes else "",
            )


def render(title: str, rows: Sequence[OptionRow]) -> str:
    """Formats a group of options as text, as wide as the terminal."""
    width = min(max(shutil.get_terminal_size((110, 24)).columns, 70), 120)
    lines = textwrap.wrap(title, width)
    for row in rows:
        name = f"  {row.path}={show(row.default)}"
        text = "; ".join(part for part in (row.meaning, row.takes) if part)
        wrapped = textwrap.wrap(text, width - NAMES) or [""]
        if len(name) >= NAMES:
            lines.append(name)
            name = ""
        lines += [f"{name if n == 0 else '':{NAMES}}{line}".rstrip() for n, line in enumerate(wrapped)]
    return "\n".join(lines)
