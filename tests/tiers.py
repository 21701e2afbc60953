"""Which cases of a test run always, and which only where everything runs: ``make test SLOW=1``, and CI."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest


def in_ci(*values: Any) -> list[Any]:
    """Values of a parameter, a tuple for those of several, with which only CI runs a test."""
    each = (value if isinstance(value, tuple) else (value,) for value in values)
    return [pytest.param(*value, marks=pytest.mark.slow) for value in each]


def named(cases: Mapping[str, Any], *always: str) -> list[Any]:
    """Cases by their names, of which only those that are named here run ``always``; the others run in CI."""
    assert set(always) <= set(cases), f"{sorted(set(always) - set(cases))} is no case of {sorted(cases)}"
    marks = {name: () if name in always else pytest.mark.slow for name in cases}
    return [pytest.param(value, id=name, marks=marks[name]) for name, value in cases.items()]
