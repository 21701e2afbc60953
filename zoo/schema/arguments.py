"""Arguments ``KEY=VALUE`` of a script: read by the types of its options, and the text of its ``--help``."""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

from pydantic import AfterValidator, ConfigDict, ValidationInfo

from zoo.config import ConfigError
from zoo.paths import PathName, expand
from zoo.plugins import KEY, import_typed, read_names
from zoo.schema.base import Options, PictureFormat, option
from zoo.schema.messages import describe, is_union, show, unknown

HELP = ("-h", "--help")
COLUMN, WIDTH = 34, 120  # of the meanings in the text of --help, and of its lines


def _writable(text: str, info: ValidationInfo) -> str:
    """``text`` if something can be written there; ValueError otherwise, before there is anything to write."""
    path = expand(text)
    above = next(folder for folder in path.absolute().parents if os.path.lexists(folder))
    if not above.is_dir():
        raise ValueError(f"{info.field_name}={text}: {above} is not a folder.")
    if not os.access(path if path.exists() else above, os.W_OK):
        raise ValueError(f"{info.field_name}={text} cannot be written: permission denied.")
    return str(path)


def _file(text: str, info: ValidationInfo) -> str:
    if not text or Path(text).is_dir():
        raise ValueError(f"{info.field_name}={text}: expected a file, and not a folder.")
    return text


def _folder(text: str, info: ValidationInfo) -> str:
    if Path(text).exists() and not Path(text).is_dir():
        raise ValueError(f"{info.field_name}={text}: expected a folder, and not a file.")
    return text


def _picture(text: str, info: ValidationInfo) -> str:
    kinds = get_args(PictureFormat)
    if Path(text).suffix.removeprefix(".") not in kinds:
        raise ValueError(f"{info.field_name}={text}: expected a name that ends in .{', .'.join(kinds)}.")
    return text


def _present(text: str, info: ValidationInfo) -> str:
    if not expand(text).is_file():
        raise ValueError(f"{info.field_name}={text}: there is no such file.")
    return str(expand(text))


OutputFile = Annotated[PathName, AfterValidator(_writable), AfterValidator(_file)]
PictureFile = Annotated[PathName, AfterValidator(_writable), AfterValidator(_file), AfterValidator(_picture)]
OutputFolder = Annotated[PathName, AfterValidator(_writable), AfterValidator(_folder)]
InputFile = Annotated[PathName, AfterValidator(_present)]


class Arguments(Options):
    """Options of a script, every one with a default; lists are written with commas between their members."""

    model_config = ConfigDict(frozen=True)

    plugins: list[str] = option("Python packages that are imported first, as plugins=[my_package]", default=[])


Given = TypeVar("Given", bound=Arguments)


def read_arguments(
    kind: type[Given],
    arguments: Sequence[str],
    usage: str | None,
    rest: str | None = None,
    roots: Collection[str] = (),
) -> tuple[Given, list[str]]:
    """Reads the options that ``arguments`` set, and all other arguments; ``--help`` ends the program.

    Args:
        kind: model of the options.
        arguments: as typed, without the name of the program.
        usage: what ``--help`` prints before the options, the docstring of the script.
        rest: name of the other arguments, as ``RUN_DIR``; None where there are none.
        roots: first parts of the keys of another program's options, which are accepted too.

    Raises:
        ConfigError: on an unknown option, or a value that is not of its type or out of range.
    """
    import_typed(arguments)
    if set(HELP) & set(arguments):
        print(help_text(kind, usage))
        raise SystemExit(0)
    given: dict[str, Any] = {}
    others = []
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if equals and key == KEY:
            given[key] = read_names(text)
        elif equals and key in kind.model_fields:
            given[key] = _read(kind.model_fields[key].rebuild_annotation(), text)
        elif key in kind.model_fields:
            raise ConfigError(f"{key} has no value: expected {key}=VALUE.")
        elif roots and re.split(r"[./@]", key.lstrip("+~"))[0] in roots:
            others.append(argument)
        elif rest is None or _is_option(argument):
            raise ConfigError(unknown(key, [*kind.model_fields, *roots]))
        else:
            others.append(argument)
    return kind.read(given), others


def help_text(kind: type[Arguments], usage: str | None) -> str:
    """Returns the usage, then a line for each option: its default, meaning, and the values that it takes."""
    defaults = {name: _typed(field.default) for name, field in kind.model_fields.items()}
    return "\n".join([(usage or "").strip(), "", "Options:", "", *option_lines(kind, defaults)])


def _typed(value: Any) -> str:
    """A default as it would be typed."""
    if value is None:
        return ""
    return ",".join(map(show, value)) if isinstance(value, list) else show(value)


def option_lines(kind: type[Options], defaults: Mapping[str, Any], path: str = "") -> list[str]:
    """Returns lines about each option: its default, meaning, and the values that it takes.

    Args:
        kind: model of the options.
        defaults: defaults by name.
        path: prefix of each name, as ``task.``.
    """
    lines: list[str] = []
    for name, field in kind.model_fields.items():
        value = defaults.get(name)
        if isinstance(value, dict):
            value = value.get("name", "{}" if not value else f"{{{', '.join(value)}}}")
        left = f"    {path}{name}={show(value)}"
        meaning = f"{field.description} ({describe(field)})" if field.description else describe(field)
        start = [left] if len(left) > COLUMN - 2 else []
        first = " " * COLUMN if start else f"{left:{COLUMN}}"
        lines += [*start, *textwrap.wrap(meaning, WIDTH, initial_indent=first, subsequent_indent=" " * COLUMN)]
    return lines


def _is_option(argument: str) -> bool:
    """Whether an argument was meant as KEY=VALUE or a flag, and not as a path."""
    return re.match(r"-|\w*=", argument) is not None and not Path(argument).exists()


def _read(hint: Any, text: str) -> Any:
    """The value of the type ``hint`` that ``text`` is; what is of another type stays as it is, to be refused."""
    if get_origin(hint) is Annotated:
        return _read(get_args(hint)[0], text)
    if is_union(hint):
        if NoneType in get_args(hint) and text in ("", "null"):
            return None
        return _read(next(part for part in get_args(hint) if part is not NoneType), text)
    if get_origin(hint) is list:
        text = text[1:-1] if text.startswith("[") and text.endswith("]") else text
        return [_read(get_args(hint)[0], part) for part in text.split(",")] if text else []
    return text if hint is str or get_origin(hint) is Literal else _scalar(text)


def _scalar(text: str) -> Any:
    """A number, true or false; any other text as it is."""
    if text in ("true", "false"):
        return text == "true"
    for number in (int, float):
        if re.fullmatch(r"[+-]?[\d._]+(e[+-]?\d+)?", text, re.IGNORECASE):
            try:
                return number(text)
            except ValueError:
                continue
    return text
