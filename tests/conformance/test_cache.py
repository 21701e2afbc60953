"""Any way through a cache gives what the whole sequence gives."""

from __future__ import annotations

import pytest
import torch

from tests.conformance.cases import (
    assert_equal,
    draw,
    every_mixer,
    every_name,
    make,
    new_cache,
    tensors,
    with_slow_shapes,
)
from tests.tiers import named
from zoo.conformance.search import random_split

pytestmark = [pytest.mark.usefixtures("poisoned"), pytest.mark.usefixtures("without_gradients")]

LENGTH = 131


@pytest.fixture
def without_gradients():
    with torch.no_grad():
        yield


SPLITS = {"whole": [LENGTH], "tokens": [1] * LENGTH, "prefill": [100] + [1] * 31, "chunks": [64, 64, 3]}
SPLITS |= {f"random {seed}": random_split(seed, LENGTH) for seed in range(2)}
SPLITS["mixed"] = [20, 1, 1, 41, 1, 1, 3, 55, 1, 1, 1, 5]  # one token at each border of 64, and behind a long piece


@pytest.mark.sampled(3)
@every_mixer
@pytest.mark.parametrize("pieces", named(SPLITS, "mixed"))
def test_any_split_equals_the_whole(name, options, pieces):
    mixer, x = make(name, options), draw(2, LENGTH)
    want = mixer(x)
    for capacity in (LENGTH, 10):  # allocated at once, and growing
        cache = new_cache(mixer, 2, capacity)
        got = torch.cat([mixer(piece, cache=cache) for piece in x.split(pieces, 1)], 1)
        assert_equal(got, want)


RAGGED = {
    "prefill": [[5, 1, 70], [1, 1, 1], [1, 1, 1]],
    "zero": [[3, 0, 1], [0, 2, 0], [4, 4, 4], [1, 0, 1]],
    "single tokens": [[1, 0, 1], [0, 1, 1], [1, 1, 1], [1, 1, 0]],
    "nothing at all": [[0, 0, 0], [2, 3, 1], [0, 0, 0], [1, 1, 1]],
    "even again": [[5, 3, 8], [3, 5, 0], [2, 2, 2], [7, 1, 3]],
    "over chunks": [[64, 1, 63], [65, 64, 1], [1, 66, 66], [2, 2, 0]],
}


@every_mixer
@pytest.mark.parametrize("steps", named(RAGGED, "over chunks"))
def test_ragged_pieces_equal_each_row_alone(name, options, steps):
    """Padding is filled with outliers; pieces whose rows all have their full length come without lengths too."""
    mixer = make(name, options)
    totals = torch.tensor(steps).sum(0).tolist()
    rows = [draw(1, n) for n in totals]
    want = [mixer(row) if row.shape[1] else row for row in rows]
    cache = new_cache(mixer, 3)
    done = [0, 0, 0]
    for step in steps:
        longest = max(max(step), 1)
        padded = 1e3 * draw(3, longest)
        for i, n in enumerate(step):
            padded[i, :n] = rows[i][0, done[i] : done[i] + n]
        full = min(step) == longest
        y = mixer(padded, cache=cache, lengths=None if full else torch.tensor(step))
        assert torch.isfinite(y).all(), "what is not a number on padding would reach the state of the next layer"
        for i, n in enumerate(step):
            assert_equal(y[i, :n], want[i][0, done[i] : done[i] + n])
            done[i] += n


@with_slow_shapes
def test_lengths_of_the_whole_piece_equal_none(name, options):
    mixer, x = make(name, options), draw(2, 40)
    cache = new_cache(mixer, 2)
    parts = [mixer(p, cache=cache, lengths=torch.full((2,), p.shape[1])) for p in x.split([20, 1, 1, 17, 1], 1)]
    assert_equal(torch.cat(parts, 1), mixer(x))


@with_slow_shapes
def test_two_caches_do_not_disturb_each_other(name, options):
    mixer, x = make(name, options), draw(2, 30)
    caches = [new_cache(mixer, 1) for _ in range(2)]
    outputs: list[list[torch.Tensor]] = [[], []]
    for piece in x.split([7, 1, 1, 12, 9], 1):
        for row in range(2):
            outputs[row].append(mixer(piece[row : row + 1], cache=caches[row]))
    assert_equal(torch.cat([torch.cat(parts, 1) for parts in outputs]), mixer(x))


@with_slow_shapes
def test_running_without_a_cache_leaves_no_trace(name, options):
    mixer, x = make(name, options), draw(2, 30)
    cache = new_cache(mixer, 2)
    first = mixer(x[:, :20], cache=cache)
    before = [t.clone() for t in tensors(cache)]
    mixer(draw(2, 50))
    assert all(map(torch.equal, tensors(cache), before))
    assert_equal(torch.cat([first, mixer(x[:, 20:], cache=cache)], 1), mixer(x))


@with_slow_shapes
def test_a_cache_in_low_precision_stays_close(name, options):
    """bf16 keys cost precision, and only that."""
    mixer, x = make(name, options).float(), draw(2, 40, torch.float32)
    cache = mixer.new_cache(2, dtype=torch.bfloat16)
    got = torch.cat([mixer(piece, cache=cache) for piece in x.split([20, 1, 1, 18], 1)], 1)
    want = mixer(x)
    assert got.dtype == torch.float32
    assert (got - want).abs().max() < 0.05 * want.abs().max()


@every_name
def test_lengths_without_a_cache_are_refused(name):
    with pytest.raises(ValueError, match=r"lengths .* without cache"):
        make(name)(draw(1, 4), lengths=torch.tensor([3]))
