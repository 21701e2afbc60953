"""What is run of the cases that are slow in two parameters, and of tests that are sampled."""

from types import SimpleNamespace

import pytest

from tests.tiers import ONE_IN, drawn

COUNT = 2000


def cases(slow, *sampled):
    """Items with so many slow values beside a usual one, of a test with the given marks."""
    marks = [pytest.mark.usefixtures("x").mark, *[pytest.mark.slow.mark] * slow]
    of_test = SimpleNamespace(marks=marks)
    return [
        SimpleNamespace(nodeid=f"test[{i}]", callspec=of_test, iter_markers=lambda name: sampled) for i in range(COUNT)
    ]


def test_of_a_sampled_test_the_usual_cases_always_run_and_a_share_of_the_slow_ones():
    mark = pytest.mark.sampled(4).mark
    assert all(drawn(item, seed) for item in cases(0, mark) for seed in range(3))
    runs = [{item.nodeid for item in cases(1, mark) if drawn(item, seed)} for seed in range(40)]
    assert all(len(run) == pytest.approx(COUNT / 4, rel=0.3) for run in runs)
    assert len(set.union(*runs)) == COUNT


def test_what_is_slow_in_no_or_one_parameter_is_always_run():
    assert all(drawn(item, seed) for slow in (0, 1) for item in cases(slow) for seed in range(3))
    assert drawn(SimpleNamespace(nodeid="test of no parameters"), 0)


@pytest.mark.parametrize("slow", [2, 3])
def test_what_is_slow_in_two_is_a_share_by_its_seed_and_all_of_it_by_many(slow):
    items, runs = cases(slow), []
    for seed in range(10 * ONE_IN):
        runs.append({item.nodeid for item in items if drawn(item, seed)})
        assert len(runs[-1]) == pytest.approx(COUNT / ONE_IN, rel=0.3)
    assert runs[0] == {item.nodeid for item in items if drawn(item, 0)} != runs[1]
    assert set.union(*runs) == {item.nodeid for item in items}
