"""Which pieces there are: the families hand in their cases by name, and a piece runs those of all families."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any, Protocol, TypeVar

FAMILIES = ("linear", "softmax")
SUITES = {  # the pieces of a suite in the order in which they run; what a family adds under a new name comes last
    "cpu": ("linear", "sparse", "decode"),
    "cuda": (
        "ceilings",
        "correctness_linear",
        "correctness_softmax",
        "correctness_decode",
        "correctness_large",
        "linear",
        "contexts_forward",
        "contexts_training",
        "few_heads",
        "few_heads_exact",
        "widths",
        "softmax",
        "gqa",
        "windows",
        "sparse",
        "decode",
        "overhead",
    ),
    "first": ("lightning-8k", "lightning-64k", "flash-8k", "window-32k", "bigbird-32k", "decode"),
}
CHECKED = "correctness_"  # how the names of pieces of checks begin


class Item(Protocol):
    """What a piece yields: ``str(item)`` names it, ``item.run(bench)`` measures it and adds records."""

    def run(self, bench: Any) -> None:
        """Measure."""
        ...


Make = Callable[[Any], Iterator[Item]]  # of a Bench
Own = TypeVar("Own", bound=Make)
_pieces: dict[str, dict[str, list[Make]]] = {suite: {name: [] for name in names} for suite, names in SUITES.items()}


def piece(suite: str, name: str) -> Callable[[Own], Own]:
    """Decorator: a generator of items that belongs to the piece ``name`` of a suite; it may stand several times."""

    def add(make: Own) -> Own:
        _pieces[suite].setdefault(name, []).append(make)
        return make

    return add


def names_of(suite: str) -> tuple[str, ...]:
    """Names of the pieces of a suite, in the order in which they run."""
    for module in ("bench.ceilings", *(f"{family}.cases" for family in FAMILIES), "bench.across"):
        import_module(f"zoo_kernels.{module}")
    return tuple(_pieces[suite])


def items_of(bench: Any, suite: str, name: str) -> Iterator[Item]:
    """Items of a piece, those of every family; code behind a family's last ``yield`` runs after its last item."""
    assert name in names_of(suite), name
    for make in _pieces[suite][name]:
        yield from make(bench)
