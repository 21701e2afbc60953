"""Errors of options in one line: the option, its value, what was expected, and what it means."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

SHOWN = 3  # problems that one line names
LONGEST = 80  # characters of a value
KINDS: dict[Any, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def explain(model: type[BaseModel], node: Mapping[str, Any], error: ValidationError, path: str = "") -> str:
    """Explains all that is wrong with ``node`` in one line.

    Args:
        model: model that refused it.
        node: the values.
        error: pydantic's error.
        path: path of the node, as ``optimizer``.
    """
    found: dict[str, str] = {}
    for one in error.errors(include_url=False):
        if one["type"] == "value_error":
            found.setdefault(str(one["ctx"]["error"]), str(one["ctx"]["error"]))
        else:
            name, line = _problem(model, node, one, path)
            found.setdefault(name, line)
    lines = [line.rstrip(".") for line in found.values()]
    more = f"; and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
    return sentence("; ".join(lines[:SHOWN]) + more)


def sentence(text: str) -> str:
    """Returns text with one punctuation mark at its end."""
    return text if text.endswith(("?", ".")) else f"{text}."


def _problem(model: type[BaseModel], node: Any, one: Any, path: str) -> tuple[str, str]:
    """Path and line of one of pydantic's errors."""
    field: FieldInfo | None = None
    owner: type[BaseModel] | None = model
    value: Any = node
    for part in one["loc"]:
        if isinstance(value, Mapping) and owner is not None and part in owner.model_fields:
            field, path = owner.model_fields[part], _join(path, part)
            value = value.get(part)
            owner = model_below(field.annotation, value)
        elif isinstance(part, int):
            break  # the whole list is shown
        elif isinstance(value, Mapping) and part in value:
            value, path, field = value[part], _join(path, str(part)), None
    if one["type"].startswith("union_tag") and field is not None:
        tag = str(field.discriminator)
        value = value.get(tag) if isinstance(value, Mapping) else None
        choices = [get_args(m.model_fields[tag].annotation)[0] for m in models_below(field.annotation)]
        return _join(path, tag), f"{_join(path, tag)}={show(value)}: {suggest(str(value), choices)}"
    if one["type"] == "extra_forbidden" and owner is not None:
        return path, unknown(path, owner.model_fields, path.rpartition(".")[0])
    if one["type"] == "missing":
        wanted = "a value" if field is None else expectation(field)
        return path, f"{path} is missing: expected {wanted}"
    wanted = one["msg"] if field is None else expectation(field)
    return path, f"{path}={show(value)}: expected {wanted}"


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def model_below(hint: Any, value: Any = None) -> type[BaseModel] | None:
    """Returns the model in an annotation; of several, the one whose ``Literal`` fields have the values of ``value``."""
    found = list(models_below(hint))
    if len(found) < 2 or not isinstance(value, Mapping):
        return _chosen(found[0], value) if found else None
    for model in found:
        tags = {n: get_args(f.annotation) for n, f in model.model_fields.items() if get_origin(f.annotation) is Literal}
        if any(value.get(name) in choices for name, choices in tags.items() if len(choices) == 1):
            return model
    return found[0]


def _chosen(model: type[BaseModel], value: Any) -> type[BaseModel]:
    """The model, or the one that its value names where there is one for each name."""
    chosen = getattr(model, "chosen", None)
    return chosen(value) if chosen is not None and isinstance(value, Mapping) else model


def models_below(hint: Any) -> Iterable[type[BaseModel]]:
    """Yields all options models in an annotation."""
    if isinstance(hint, type) and issubclass(hint, BaseModel):
        yield hint
    elif is_union(hint) or get_origin(hint) is Annotated:
        for part in get_args(hint):
            yield from models_below(part)


def is_union(hint: Any) -> bool:
    """Returns whether an annotation is ``A | B``."""
    return str(get_origin(hint)) in ("typing.Union", "<class 'types.UnionType'>")


def expectation(field: FieldInfo) -> str:
    """Describes the values of an option and its meaning, as ``a number > 0 (learning rate)``."""
    meaning = f" ({field.description})" if field.description else ""
    return describe(field) + meaning


def describe(field: FieldInfo) -> str:
    """Describes the values of an option, as ``a whole number >= 1, or null``."""
    return _describe(field.annotation, field.metadata)


def _describe(hint: Any, metadata: Sequence[Any] = ()) -> str:
    if get_origin(hint) is Annotated:
        base, *inner = get_args(hint)
        return _describe(base, [*inner, *metadata])
    if is_union(hint):
        parts = [_describe(part, metadata) for part in get_args(hint) if part is not NoneType]
        null = ["null"] if NoneType in get_args(hint) else []
        return ", or ".join([" or ".join(dict.fromkeys(parts)), *null])
    if get_origin(hint) is Literal:
        choices = [show(choice) for choice in get_args(hint)]
        return choices[0] if len(choices) == 1 else f"one of {', '.join(choices)}"
    if get_origin(hint) in (list, tuple):
        size = next((f" of {m.min_length}" for m in metadata if isinstance(m, MinLen) and m.min_length > 1), "")
        return f"a list{size}, each {_describe(get_args(hint)[0])}" if get_args(hint) else "a list"
    if get_origin(hint) is dict or (isinstance(hint, type) and issubclass(hint, BaseModel)):
        return "options below it"
    return f"{KINDS.get(hint, str(hint))} {_range(metadata)}".strip()


def _range(metadata: Sequence[Any]) -> str:
    """Bounds as ``> 0``, ``from 0 to 1`` or ``from 0 to below 1``."""
    low = next((m for m in metadata if isinstance(m, (Ge, Gt))), None)
    high = next((m for m in metadata if isinstance(m, (Le, Lt))), None)
    least = None if low is None else low.ge if isinstance(low, Ge) else low.gt
    most = None if high is None else high.le if isinstance(high, Le) else high.lt
    if least is None and most is None:
        return ""
    if most is None:
        return f"{'>=' if isinstance(low, Ge) else '>'} {least}"
    if least is None:
        return f"{'<=' if isinstance(high, Le) else '<'} {most}"
    return f"{'from' if isinstance(low, Ge) else 'above'} {least} to {'' if isinstance(high, Le) else 'below '}{most}"


def unknown(path: str, known: Iterable[str], parent: str = "") -> str:
    """Returns the error of an option that does not exist; ``known`` are those of ``parent`` by their own names."""
    names = [_join(parent, name) for name in known]
    return f"{path}: unknown option; {suggest(path, names)}"


def suggest(given: str, known: Iterable[str], others: Iterable[str] = ()) -> str:
    """Returns ``did you mean X?``, or all of ``known``; of paths the last parts are compared.

    ``others`` may be meant, too.
    """
    near = list(known)
    for names in (near, list(others)):
        ends = {name.rpartition(".")[2]: name for name in reversed(names)}
        wanted = given.rpartition(".")[2]
        if close := difflib.get_close_matches(wanted, list(ends), 1, 0.7) or _longer(wanted, reversed(ends)):
            return f"did you mean {' or '.join(ends[name] for name in close)}?"
    return f"expected one of {', '.join(near)}"


def _longer(wanted: str, names: Iterable[str]) -> list[str]:
    """The names that begin with ``wanted``, or with its singular, if they are few."""
    found = [name for name in names if len(wanted) > 2 and name.startswith(wanted.removesuffix("s"))]
    return found if len(found) <= SHOWN else []


def show(value: Any) -> str:
    """Formats a value as YAML would, cut where it is long."""
    if value is None:
        text = "null"
    elif isinstance(value, bool):
        text = str(value).lower()
    elif isinstance(value, (list, tuple)):
        text = f"[{', '.join(map(show, value))}]"
    elif isinstance(value, Mapping):
        text = "{" + ", ".join(f"{k}: {show(v)}" for k, v in value.items()) + "}"
    elif isinstance(value, str) and not value.isprintable():
        text = json.dumps(value, ensure_ascii=False)
    else:
        text = str(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
