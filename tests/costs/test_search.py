"""The search behind matching, against trying all values."""

from __future__ import annotations

import random

import pytest

from zoo.costs.search import SCAN, IntegerSearch


def brute(measure, target, step, highest):
    return min(abs(f - target) for v in range(step, highest + 1, step) if (f := measure(v)) is not None)


@pytest.mark.parametrize("seed", range(40))
def test_the_search_finds_what_trying_all_finds(seed):
    """Any monotone quantity, rising or falling, with plateaus, and values that are not accepted."""
    draw = random.Random(seed)
    highest = draw.choice([1, 3, 40, 1000])
    steps = [draw.choice([0, 0, 1, 1, 5, 100]) if i % 3 else 1 for i in range(highest)]
    step, sign = draw.choice([1, 1, 2, 8]), draw.choice([1, -1])
    accepted = [draw.random() < draw.choice([0.2, 1, 1]) for _ in range(highest)]
    accepted[step - 1 if step <= highest else 0] = True
    table = [sign * sum(steps[: i + 1]) for i in range(highest)]

    def measure(value):
        return table[value - 1] if value <= highest and accepted[value - 1] else None

    if step > highest:
        step = 1
    for target in (draw.choice(table), draw.uniform(min(table) - 5, max(table) + 5), min(table) - 1, max(table) + 1):
        search = IntegerSearch(measure, target, step)
        search.run(draw.choice([None, 1, draw.randint(1, highest)]))
        assert all(measure(v) == f and v % step == 0 for v, f in search.measured.items())
        value, found = search.nearest
        assert measure(value) == found
        assert abs(found - target) == brute(measure, target, step, highest)


def test_a_linear_cost_is_solved_in_a_few_measurements():
    search = IntegerSearch(lambda value: 3072 * value + 10**6, 10**6 + 3072 * 619.4)
    search.run(704)
    assert search.nearest[0] == 619 and len(search.measured) <= 6


def test_a_cost_that_rises_and_falls_is_measured_everywhere_if_the_values_are_few():
    search = IntegerSearch({16: 50.0, 32: 60.0, 48: 91.0, 64: 40.0}.get, 92)
    search.run(16)
    assert search.nearest == (48, 91.0) and search.complete
    wide = IntegerSearch(lambda value: -abs(value - 10.0 * SCAN), -1)
    wide.run(3 * SCAN)
    assert not wide.complete


def test_a_cost_that_stops_growing_is_not_followed_for_ever():
    search = IntegerSearch(lambda value: min(value, 512), 10**6)
    search.run(256)
    assert search.nearest[1] == 512 and max(search.measured) < 10**4


def test_no_accepted_value():
    search = IntegerSearch(lambda value: None, 1)
    search.run(5)
    assert search.nearest is None and search.measured == {}
