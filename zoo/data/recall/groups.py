"""Finite groups as multiplication tables, for tasks that ask for a running product."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations

Table = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Group:
    """A finite group; its elements are the numbers from 0, the identity, to ``len(group) - 1``.

    Attributes:
        table: ``table[a][b]`` is b after a: what a state ``a`` becomes by the element ``b``.
        swaps: the identity and the exchanges of two things, where the elements are permutations; else empty.
    """

    table: Table
    swaps: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.table)


def cyclic(n: int) -> Group:
    """Addition modulo ``n``; modulo 2, its running sum is the parity of the ones."""
    return Group(tuple(tuple((a + b) % n for b in range(n)) for a in range(n)))


def symmetric(n: int) -> Group:
    """All permutations of ``n`` things, in lexicographic order."""
    elements = list(permutations(range(n)))
    number = {element: index for index, element in enumerate(elements)}
    table = tuple(tuple(number[tuple(b[place] for place in a)] for b in elements) for a in elements)
    moved = [sum(place != thing for place, thing in enumerate(element)) for element in elements]
    return Group(table, tuple(index for index, count in enumerate(moved) if count <= 2))


GROUPS = {"parity": cyclic(2), "mod5": cyclic(5), "s3": symmetric(3), "s5": symmetric(5)}
