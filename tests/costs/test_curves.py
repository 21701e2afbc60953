"""Curves that share a label, and numbers on axes."""

from zoo.costs.cost_curves import merge
from zoo.costs.plan_text import binary, seconds, unit


def test_curves_that_agree_share_a_label():
    values = {"a": [1.0, 1.0], "b": [2.0, 9.0], "c": [1.0, 1.01], "d": [1.0, 2.0]}
    assert merge(values) == [("b",), ("d",), ("a", "c")]


def test_numbers_are_written_with_units():
    assert [unit(v, "B") for v in (12, 999.6, 989e12)] == ["12 B", "1 kB", "989 TB"]
    assert [binary(v) for v in (12, 2**20, 1.5 * 2**30)] == ["12 B", "1 MiB", "1.5 GiB"]
    assert [seconds(v) for v in (2e-9, 5e-6, 0.0125, 3.5, 7200)] == ["2 ns", "5 µs", "12.5 ms", "3.5 s", "2 h"]
