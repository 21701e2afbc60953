"""Which cases of a test run always, and which only where everything runs: ``make test SLOW=1``, and CI."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import pytest

ONE_IN = 10  # of the cases that are slow in two parameters, as many are run at random


def drawn(item: pytest.Item, seed: int) -> bool:
    """Whether everything runs it: all but most of the cases that are slow in two parameters or more.

    Each further value of a parameter always meets the usual values of the others, which holds all that one of them
    changes alone. What only two of them do together is searched for by a seed, which every run prints. A test that is
    marked ``sampled(n)``, whose usual cases hold the contract, runs one in n of its slow cases likewise.
    """
    marks = item.callspec.marks if hasattr(item, "callspec") else []
    slow = sum(mark.name == "slow" for mark in marks)
    one_in = ONE_IN if slow > 1 else next((mark.args[0] for mark in item.iter_markers("sampled")), 1) if slow else 1
    return zlib.crc32(f"{seed} {item.nodeid}".encode()) % one_in == 0


def in_ci(*values: Any) -> list[Any]:
    """Values of a parameter, a tuple for those of several, with which only CI runs a test."""
    each = (value if isinstance(value, tuple) else (value,) for value in values)
    return [pytest.param(*value, marks=pytest.mark.slow) for value in each]


def named(cases: Mapping[str, Any], *always: str) -> list[Any]:
    """Cases by their names, of which only those that are named here run ``always``; the others run in CI."""
    assert set(always) <= set(cases), f"{sorted(set(always) - set(cases))} is no case of {sorted(cases)}"
    marks = {name: () if name in always else pytest.mark.slow for name in cases}
    return [pytest.param(value, id=name, marks=marks[name]) for name, value in cases.items()]
