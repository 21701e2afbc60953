"""Tokens that their positions make global: counted as they are flagged."""

from __future__ import annotations

import pytest
import torch

from zoo.mixers.caches.global_tokens import GlobalTokens


@pytest.mark.parametrize(("first", "every"), [(0, None), (3, None), (0, 4), (3, 4), (4, 4), (9, 4), (2, 1)])
def test_fixed_tokens_are_counted_as_they_are_flagged(first, every):
    tokens = GlobalTokens(first, every)
    flags = tokens.flags(torch.arange(40)[None], None)[0].tolist()
    assert flags == [tokens.fixed(t) for t in range(40)]
    for start in range(-3, 40, 3):
        for stop in range(-3, 40):
            assert tokens.count(start, stop) == sum(flags[max(start, 0) : max(stop, 0)])


@pytest.mark.parametrize(("first", "every"), [(0, None), (3, None), (0, 4), (3, 4), (9, 6), (2, 1), (0, 7)])
def test_fixed_tokens_at_a_distance_are_counted_as_one_by_one(first, every):
    tokens = GlobalTokens(first, every)
    for start in range(14):
        for step in range(1, 13):
            for number in range(9):
                want = sum(tokens.fixed(start + i * step) for i in range(number))
                assert tokens.count_spaced(start, step, number) == want
