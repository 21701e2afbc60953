"""Paths on command lines: taken as they are typed, whatever characters they have, and printed to be pasted.

The value of a key of PATH_KEYS is the path itself, not Hydra's grammar: blanks, quotes, brackets, ``=``, ``#`` and
``${`` stand for themselves, and ``~`` for the home folder. Where that is ambiguous, a path that exists wins:

- ``null`` and an empty value set no path; ``./null`` is a path.
- A value that is wholly in quotes is read as Hydra reads it, unless a path with these quotes exists.
- Lists, ``run=A,B`` and the values of a multirun, are cut at each comma but those in the name of a path that exists.
"""

from __future__ import annotations

import glob
import io
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

PATH_KEYS = frozenset(
    (
        "run",
        "resume",
        "init",
        "out",
        "prompt_file",
        "data.path",
        "data.cache_dir",
        "data.source.path",
        "data.source.root",
        "data.source.cache_dir",
        "tokenizer.id",
        "task.path",
        "task.haystack",
        "task.include_path",
        "hydra.run.dir",
        "hydra.sweep.dir",
    )
)
LISTS = ("run", "task.include_path")  # that take several paths
ROOT = Path(__file__).resolve().parents[1]  # where train.py is
WORD = re.compile(r"""\$'((?:[^'\\]|\\[0-7]{3})*)'|((?:[^\s'"]|'[^']*'|"[^"]*")+)""")
MULTIRUN = ("-m", "--multirun")

SWEEPS = re.compile(r"(choice|glob|shuffle|sort)\(.*\)", re.DOTALL)


class IsPath:
    """Annotation of options that are paths, whose keys belong into PATH_KEYS."""


PathName = Annotated[str, IsPath()]


def take_paths(arguments: Iterable[str], keys: Collection[str] = PATH_KEYS) -> list[str]:
    """Quotes the values of ``keys`` that are paths, so that Hydra's grammar reads them as typed."""
    given = list(arguments)
    multirun = any(flag in given for flag in MULTIRUN)
    return [_take(argument, keys, multirun) for argument in given]


def _take(argument: str, keys: Collection[str], multirun: bool) -> str:
    name, equals, value = argument.partition("=")
    key = name.lstrip("+")
    if not equals or key not in keys or value in ("", "null"):
        return argument
    if key in LISTS and value[0] == "[" and not exists(value) and _is_list(value):
        return argument
    if multirun and key not in LISTS and not key.startswith("hydra."):
        if SWEEPS.fullmatch(value) and not exists(value):
            return argument
        return f"{name}={','.join(_take_one(path) for path in split_paths(value))}"
    return f"{name}={_take_one(value, expanded=key not in LISTS)}"


def _take_one(value: str, expanded: bool = True) -> str:
    if _unquoted(value) is not None:
        return value
    return quote(_expanded(value) if expanded else value)


def read_path(value: str) -> str:
    """Returns the path that the value of a key of PATH_KEYS means."""
    inner = _unquoted(value)
    return _expanded(value) if inner is None else inner


def _expanded(value: str) -> str:
    path = os.path.expanduser(value)
    if path == "???" or os.path.normpath(path).startswith("~"):  # would be read once more as what it is not
        return os.path.abspath(path)
    return path


def _is_list(value: str) -> bool:
    return isinstance(_parsed(value), list)


def _unquoted(value: str) -> str | None:
    """What is inside of the quotes of Hydra's grammar; None if a value has none, or a path has them itself."""
    from hydra.core.override_parser.types import QuotedString

    if value[:1] not in ("'", '"') or exists(value):
        return None
    parsed = _parsed(value)
    return parsed.text if isinstance(parsed, QuotedString) else None


def _parsed(value: str) -> Any:
    """What Hydra reads a value as; None if it cannot."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return OverridesParser.create().parse_overrides([f"key={value}"])[0]._value
    except HydraException:
        return None


def quote(path: str) -> str:
    """Quotes a path as a string of Hydra's grammar, in which nothing is an interpolation."""
    text = re.sub(r"(\\*)('|\Z)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), literal(path))
    return f"'{text}'"


def literal(value: Any) -> Any:
    """Escapes ``${`` in text, plain lists and dictionaries, which OmegaConf would take for an interpolation."""
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", lambda m: m[1] * 2 + "\\${", value)
    if isinstance(value, dict):
        return {key: literal(entry) for key, entry in value.items()}
    return [literal(entry) for entry in value] if isinstance(value, list) else value


def split_paths(text: str) -> list[str]:
    """Splits ``A,B`` at each comma but those in the name of a path that exists, and strips blanks."""
    parts = text.split(",")
    found: list[str] = []
    while parts:
        joined = (",".join(parts[:count]) for count in range(len(parts), 0, -1))
        path = next((name for whole in joined for name in (whole, whole.strip()) if exists(name)), parts[0].strip())
        found += [path] if path else []
        parts = parts[path.count(",") + 1 :]
    return found


def exists(path: str) -> bool:
    """Returns whether there is a file or folder of this name, or one that matches it as a glob."""
    whole = os.path.expanduser(path)
    return bool(path) and (os.path.lexists(whole) or bool(matches(whole)))


def matches(pattern: str) -> list[str]:
    """Returns the paths that match a glob, sorted; leading folders that exist are taken literally."""
    if not glob.has_magic(pattern):
        return []
    base = next((folder for folder in Path(pattern).parents if os.path.lexists(folder)), Path())
    rest = str(Path(pattern).relative_to(base))
    return sorted(glob.glob(os.path.join(glob.escape(str(base)), rest), recursive=True))


def expand(path: str | Path) -> Path:
    """Replaces ``~`` and ``~user`` by a home folder; a name with an unknown user stays unchanged."""
    return Path(os.path.expanduser(path))


def command(*words: str | Path) -> str:
    """Returns a command that can be pasted into a shell, whatever is in its words."""
    return " ".join(_word(str(word)) for word in words)


def program_command(program: str, *words: str) -> str:
    """Returns a command that starts a program of this project, as ``eval.py``, from the current folder."""
    if not (ROOT / program).is_file():
        return command("attention-zoo", Path(program).stem, *words)
    here = os.path.samefile(ROOT, os.curdir)
    return command("python", program if here else ROOT / program, *words)


def split_command(line: str) -> list[str]:
    """Splits a line into the words that :func:`command` was given."""
    return [shlex.split(plain)[0] if plain else _spelled_out(octal) for octal, plain in WORD.findall(line)]


def _spelled_out(text: str) -> str:
    return os.fsdecode(re.sub(rb"\\(\d{3})", lambda m: bytes([int(m[1], 8)]), text.encode()))


def _word(word: str) -> str:
    if word.isprintable():
        return shlex.quote(word)
    safe = (chr(b) if 32 <= b < 127 and chr(b) not in "\\'" else f"\\{b:03o}" for b in os.fsencode(word))
    return f"$'{''.join(safe)}'"


def shown(path: str | Path) -> str:
    r"""Returns a path or name as text that any file can hold: bytes that are not UTF-8 become ``\xNN``."""
    return re.sub("[\ud800-\udfff]", _visible, str(path))


def _visible(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"


def print_any_name() -> None:
    """Makes standard output and error escape characters that their encoding cannot show."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def plain_name(folder: Path) -> Iterator[Path]:
    """Context manager that gives a folder to libraries that open only UTF-8 names.

    It is the folder itself, or a temporary link to it.
    """
    if shown(folder) == str(folder):
        yield folder
        return
    with tempfile.TemporaryDirectory() as beside:
        link = Path(beside) / "link"
        link.symlink_to(os.path.abspath(folder), target_is_directory=True)
        yield link


def take_text(arguments: list[str], key: str) -> tuple[str | None, list[str]]:
    """Returns the last ``key=...`` argument as it was typed, and the other arguments."""
    given = [a for a in arguments if a.startswith(f"{key}=")]
    return (given[-1].removeprefix(f"{key}=") if given else None), [a for a in arguments if a not in given]
