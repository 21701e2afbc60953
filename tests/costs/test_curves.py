"""Labels that do not overlap."""

from itertools import pairwise

import numpy as np
import pytest

from zoo.costs.cost_curves import merge, spread, tokens
from zoo.costs.plan_text import binary, seconds, unit


def test_curves_that_agree_share_a_label():
    values = {"a": [1.0, 1.0], "b": [2.0, 9.0], "c": [1.0, 1.01], "d": [1.0, 2.0]}
    assert merge(values) == [("b",), ("d",), ("a", "c")]


@pytest.mark.parametrize("centers", [[0.5, 0.5, 0.5], [1.0, 0.99, 0.98], [0.02, 0.01, 0.0], [0.9, 0.5, 0.49]])
def test_labels_are_near_and_apart(centers):
    heights = [0.1, 0.2, 0.1]
    places = spread(centers, heights)
    edges = [(p + h / 2, p - h / 2) for p, h in zip(places, heights)]
    assert edges[0][0] <= 1 + 1e-9 and edges[-1][1] >= -1e-9
    assert all(above[1] >= below[0] - 1e-9 for above, below in pairwise(edges))
    assert np.abs(np.subtract(places, centers)).max() < 0.35


def test_labels_with_room_stay():
    assert spread([0.9, 0.5, 0.1], [0.1, 0.1, 0.1]) == pytest.approx([0.9, 0.5, 0.1])


def test_numbers_are_written_with_units():
    assert [unit(v, "B") for v in (12, 999.6, 989e12)] == ["12 B", "1 kB", "989 TB"]
    assert [binary(v) for v in (12, 2**20, 1.5 * 2**30)] == ["12 B", "1 MiB", "1.5 GiB"]
    assert [seconds(v) for v in (2e-9, 5e-6, 0.0125, 3.5, 7200)] == ["2 ns", "5 µs", "12.5 ms", "3.5 s", "2 h"]
    assert [tokens(v) for v in (512, 2048, 2**20)] == ["512", "2k", "1M"]
