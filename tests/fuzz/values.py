"""Values, right and wrong, that somebody might type for an option."""

from __future__ import annotations

import math
from random import Random
from typing import Any

EMPTY = ("", "null", "~", "''", "[]", "{}", "???")
NUMBERS = ("-1", "0", "1", "1.5", "-0.5", "1e3", "1e30", "-1e9", "999999999999", "1_000", "0x10", "nan", "inf", "-inf")
NESTED = ("[1,2]", "[1,[2]]", "[null]", "{a: 1}", "[abc,1]", "[-1]", "[0.5]", "[nan]")
WORDS = ("abc", "true", "False", "no", "last", "auto", "'a b'", "ü", "日本", "a.b", "none", "NaN", "1:2", "gpu", "12ab")
PATHS = (
    "missing/path",
    "/dev/null",
    "..",
    ".",
    "small",
    "small/a.txt",
    "empty",
    "broken.jsonl",
    "no.txt",
    "run",
    "~/no",
)
GRAMMAR = (
    "${seed}",
    "${nothing}",
    "${oc.env:NOTHING}",
    "${",
    "'",
    '"',
    "a,b",
    "a=b",
    "[",
    "]",
    "{",
    "@x",
    "!",
    "\\",
    "a b",
)
ODD = (EMPTY, NUMBERS, NESTED, WORDS, PATHS, GRAMMAR)
ARGUMENTS = (
    "=",
    "abc",
    "a=",
    "=1",
    "--x",
    "-x",
    "+=1",
    "~",
    "++",
    "a.b.c=1",
    "+new=1",
    "++new.key=1",
    "seed",
    "--",
    "x y",
    "ü=1",
)
AMOUNTS = (
    "steps",
    "tokens",
    "samples",
    "spans",
    "rounds",
    "every",
    "seconds",
    "minutes",
    "limit",
    "records",
    "bytes",
    "iters",
)
FEW = 64  # an amount of work that a case may ask for


def odd(rng: Random, key: str) -> str:
    """A value of any kind, for an option of which only the name is known."""
    while True:
        value = rng.choice(rng.choice(ODD))
        if not (is_amount(key) and is_many(value)):
            return value


def plausible(rng: Random, key: str, default: Any, choices: tuple[str, ...]) -> str:
    """A value like the default, or one of the choices."""
    if choices and rng.random() < 0.8:
        return rng.choice(choices)
    if isinstance(default, bool):
        return rng.choice(("true", "false"))
    if isinstance(default, int):
        near = [1, 2, 3, default, default // 2, default + 1, 2 * default]
        return str(rng.choice([n for n in near if n <= FEW or n == default]))
    if isinstance(default, float):
        return rng.choice((str(default), str(default / 2), str(default * 1.5), "0.5", "0.0", "1", f"{default:.1e}"))
    if isinstance(default, list):
        members = [plausible(rng, key, member, ()) for member in default] or [rng.choice(("1", "64", "a"))]
        return f"[{','.join(members[: rng.randint(1, len(members))])}]"
    if default is None:
        return rng.choice(("null", "1", "2", "0.5", "64", "true", "small"))
    return str(default)


def is_amount(key: str) -> bool:
    """Whether the option says how much is to be done, so that a large value is right and takes long."""
    return key.endswith(AMOUNTS)


def is_many(value: str) -> bool:
    """Whether a value is a large number."""
    try:
        return math.isinf(float(value)) or float(value) > FEW
    except ValueError:
        return False


def misspelled(rng: Random, name: str) -> str:
    """A name with one letter dropped, doubled, exchanged or replaced."""
    at = rng.randrange(len(name))
    before, letter, after = name[:at], name[at], name[at + 1 :]
    return rng.choice(
        (before + after, before + 2 * letter + after, before + after[:1] + letter + after[1:], before + "x" + after)
    )
