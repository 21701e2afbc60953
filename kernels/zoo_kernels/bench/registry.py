"""Which pieces there are: the families hand in their cases by name, and a piece runs those of all families."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from typing import Any, Protocol, TypeVar

from zoo_kernels.family import families

FIRST = "first"  # the piece for the first minutes on a GPU, which no other name includes; and its suite
CHECKED = "correctness_"  # how the names of pieces of checks begin
SUITES = {  # the pieces of a suite in the order in which they run, behind checks; what is new comes last
    "cpu": "linear sparse decode convolution",
    "cuda": "ceilings linear delta convolution contexts_forward contexts_training few_heads few_heads_exact widths "
    "softmax gqa windows sparse decode overhead",
    FIRST: "lightning-8k lightning-64k flash-8k delta-8k kda-8k window-32k bigbird-32k decode",
}


class Item(Protocol):
    """What a piece yields: ``str(item)`` names it."""

    def run(self, bench: Any) -> None:
        """Measure, and add records to the Bench."""
        ...


Make = Callable[..., Iterator[Item]]  # of a Bench
Own = TypeVar("Own", bound=Make)
_pieces: dict[str, dict[str, list[Make]]] = {s: {name: [] for name in names.split()} for s, names in SUITES.items()}


def piece(suite: str, name: str, **given: Any) -> Callable[[Own], Own]:
    """Decorator: a generator of items that belongs to a piece of a suite, called with the Bench and ``given``.

    It may stand several times. Code behind the last ``yield`` runs after the last item.
    """

    def add(make: Own) -> Own:
        _pieces[suite].setdefault(name, []).append(partial(make, **given))
        return make

    return add


def names_of(suite: str) -> tuple[str, ...]:
    """Names of the pieces of a suite, in the order in which they run; the calls of each family have one."""
    check = import_module("zoo_kernels.bench.check")
    for module in (*(family.cases for family in families().values() if family.cases), "zoo_kernels.bench.across"):
        import_module(module)
    for name, family in families().items():
        if family.calls and CHECKED + name not in _pieces["cuda"]:
            piece("cuda", CHECKED + name, family=name)(check.whole)
    return tuple(sorted(_pieces[suite], key=lambda name: not name.startswith(CHECKED)))


def items_of(bench: Any, suite: str, name: str) -> Iterator[Item]:
    """Items of a piece, those of one family after those of another."""
    assert name in names_of(suite), name
    for make in _pieces[suite][name]:
        yield from make(bench)


def chosen_pieces(text: str, suite: str) -> tuple[str, ...]:
    """Names with commas between them, or groups by their first word: ``correctness`` is all that begin with it.

    Raises:
        ValueError: if a name does not exist in the suite.
    """
    known = names_of(suite)
    if text == "all" or (text == FIRST and suite == "cuda"):
        return known if text == "all" else (FIRST,)
    found: dict[str, None] = {}
    for word in text.split(","):
        matches = [name for name in known if name == word or name.startswith(f"{word}_")]
        if not matches:
            more = f", or {FIRST} alone" if suite == "cuda" else ""
            raise ValueError(f"piece={word!r} does not exist here: expected all, {', '.join(known)}{more}.")
        found |= dict.fromkeys(matches)
    return tuple(found)
