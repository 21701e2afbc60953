"""Patterns of attentions over the layers: ``7xlightning+softmax`` is cycled to the depth, patches replace layers."""

from __future__ import annotations

import re
from collections.abc import Collection

_TOKEN = re.compile(r"(?:(\d+)x)?([A-Za-z_]\w*)")
_PATCH = re.compile(r"(-?\d+):(?:(\d+)x)?([A-Za-z_]\w*)")
DEFAULT = "attention"


class ScheduleError(ValueError):
    """Raised for a pattern or patch that cannot be read, or that names what does not exist."""


def expand_schedule(
    pattern: str,
    depth: int,
    default: str,
    known: Collection[str],
    patch: str | None = None,
    option: str = "schedule.pattern",
) -> list[str]:
    """Expands a pattern to the names of the mixers of all layers.

    Args:
        pattern: tokens ``name`` or ``Nxname`` joined by ``+``; the token ``attention`` means ``default``. The whole is
            cycled until ``depth`` layers have a name.
        depth: number of layers.
        default: name that the token ``attention`` stands for.
        known: names that exist.
        patch: tokens ``index:name`` or ``index:Nxname``, N layers from that index on, joined by ``+``; negative indices
            count from the end; N = 0 changes nothing.
        option: that the pattern was given as, for messages.

    Raises:
        ScheduleError: names the token that is wrong, and what exists.
    """
    names: list[str] = []
    for token in pattern.split("+") if pattern else []:
        match = _TOKEN.fullmatch(token.strip())
        if match is None or (match[1] is not None and int(match[1]) == 0):
            raise ScheduleError(
                f"{option}={pattern!r}: cannot read {token!r}; expected NAME or NxNAME, N >= 1, joined by +."
            )
        names += [_resolve(match[2], default, known, f"{option}={pattern!r}")] * min(int(match[1] or 1), depth)
        del names[depth:]
    if not names:
        raise ScheduleError(f"{option}={pattern!r} is empty: expected names such as 7xlightning+softmax.")
    layers = [names[i % len(names)] for i in range(depth)]
    for token in patch.split("+") if patch else []:
        _replace(layers, token.strip(), default, known, f"schedule.patch={patch!r}")
    return layers


def _replace(layers: list[str], token: str, default: str, known: Collection[str], where: str) -> None:
    match, depth = _PATCH.fullmatch(token), len(layers)
    if match is None:
        raise ScheduleError(
            f"{where}: cannot read {token!r}; expected INDEX:NAME or INDEX:NxNAME joined by +, as 0:gqa+-2:2xgqa."
        )
    name, count = _resolve(match[3], default, known, where), int(match[2] or 1)
    index = int(match[1])
    if not -depth <= index < depth:
        raise ScheduleError(f"{where}: index {index} is outside the {depth} layers ({-depth}..{depth - 1}).")
    first = index % depth
    if first + count > depth:
        raise ScheduleError(
            f"{where}: {token!r} asks for {count} layers from index {index} on, of {depth} layers: "
            f"at most {depth - first}."
        )
    layers[first : first + count] = [name] * count


def _resolve(name: str, default: str, known: Collection[str], where: str) -> str:
    name = default if name == DEFAULT else name
    if name not in known:
        raise ScheduleError(
            f"{where}: unknown attention {name!r}; expected {DEFAULT} or one of {', '.join(sorted(known))}."
        )
    return name
