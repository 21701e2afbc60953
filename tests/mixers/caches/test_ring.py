"""The ring cache holds the first and the latest tokens, wherever they lie in it."""

from __future__ import annotations

import random

import pytest
import torch

from zoo.mixers.caches import RingCache
from zoo_kernels import softmax_attention, softmax_attention_step

HEADS, GROUPS, WIDTH = 4, 2, 6

RINGS = [(5, 0), (5, 2), (1, 0), (1, 3), (16, 1)]
rings = pytest.mark.parametrize(("window", "sink_tokens"), RINGS, ids=str)
capacities = pytest.mark.parametrize("capacity", [0, 3, 1000])


def ring(window, sink_tokens, capacity=0, batch=1, dtype=torch.float64):
    return RingCache(batch, window, sink_tokens, capacity, GROUPS, WIDTH, None, dtype)


def draw(batch, length):
    return [torch.randn(batch, length, n, WIDTH, dtype=torch.float64) for n in (HEADS, GROUPS, GROUPS)]


def attend(cache, q, k, v, lengths=None):
    """A piece of window attention with sinks through the cache."""
    rule = {"window": cache.window, "sink_tokens": cache.sink_tokens}
    view = cache.append(k, v, lengths)
    if view.in_slots:
        return softmax_attention_step(q[:, 0], view.keys, view.values, view.lengths, ring=view.ring, **rule)[:, None]
    return softmax_attention(q, view.keys, view.values, documents=view.documents, **rule)


def dense(q, k, v, window, sink_tokens):
    """The same of a whole sequence, by a mask over all pairs."""
    t, k, v = torch.arange(q.shape[1]), k.repeat_interleave(2, 2), v.repeat_interleave(2, 2)
    distance = t[:, None] - t
    seen = (distance >= 0) & ((distance < window) | (t < sink_tokens))
    scores = torch.einsum("bthd,bjhd->bhtj", q, k) / WIDTH**0.5
    return torch.einsum("bhtj,bjhd->bthd", scores.masked_fill(~seen, -torch.inf).softmax(-1), v)


def equal(got, want):
    torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)


PIECES = {
    "tokens": [1] * 60,
    "longer than the ring": [40, 1, 1, 18],
    "as long as the ring": [5, 5, 7, 7, 17, 17, 2],
    "short of the ring": [4, 1, 1, 1, 4, 6, 16, 1, 1, 25],
    "twos": [2] * 30,
}


@rings
@capacities
@pytest.mark.parametrize("pieces", PIECES.values(), ids=PIECES.keys())
def test_pieces_equal_the_whole(window, sink_tokens, capacity, pieces):
    arrays = draw(2, sum(pieces))
    cache = ring(window, sink_tokens, capacity, batch=2)
    parts = zip(*(x.split(pieces, 1) for x in arrays))
    equal(torch.cat([attend(cache, *part) for part in parts], 1), dense(*arrays, window, sink_tokens))


@rings
@capacities
@pytest.mark.parametrize("seed", range(4))
def test_ragged_pieces_equal_each_row_alone(window, sink_tokens, capacity, seed):
    """Rows advance by anything from nothing to more than the ring, in pieces whose padding is full of outliers."""
    choose = random.Random(seed)
    steps = [[choose.choice([0, 1, 1, 3, window, 2 * (window + sink_tokens) + 1]) for _ in range(3)] for _ in range(12)]
    steps += [[choose.randint(0, 1) for _ in range(3)] for _ in range(12)]
    rows = [draw(1, sum(step[i] for step in steps)) for i in range(3)]
    want = [dense(*row, window, sink_tokens) for row in rows]
    cache, done = ring(window, sink_tokens, capacity, batch=3), [0, 0, 0]
    for step in steps:
        padded = [1e3 * x for x in draw(3, max(*step, 1))]
        for i, n in enumerate(step):
            for x, row in zip(padded, rows[i]):
                x[i, :n] = row[0, done[i] : done[i] + n]
        got = attend(cache, *padded, torch.tensor(step))
        for i, n in enumerate(step):
            equal(got[i, :n], want[i][0, done[i] : done[i] + n])
            done[i] += n
    assert cache.lengths.tolist() == done


def numbered(start, length):
    """Keys that say where they are from."""
    return torch.arange(start, start + length, dtype=torch.float64)[None, :, None, None].expand(1, -1, GROUPS, WIDTH)


@pytest.mark.parametrize(("window", "sink_tokens"), [(5, 0), (5, 2), (1, 1)], ids=str)
@pytest.mark.parametrize("before", [1, 4, 5, 6, 7, 8, 23])
def test_a_piece_sees_the_sinks_and_the_window_in_order(window, sink_tokens, before):
    cache = ring(window, sink_tokens)
    for start, length in ((0, before), (before, 3)):
        keys = numbered(start, length)
        view = cache.append(keys, -keys)
    first = list(range(min(sink_tokens, before)))
    latest = list(range(max(before - window, sink_tokens), before))
    assert view.keys[0, :, 0, 0].tolist() == [*first, *latest, *range(before, before + 3)]
    assert torch.equal(view.values, -view.keys) and view.documents is None


@rings
def test_a_token_is_written_to_the_slot_that_the_step_reads(window, sink_tokens):
    """After any number of tokens, the slots hold the sinks and the latest tokens, each once."""
    cache = ring(window, sink_tokens)
    for t in range(3 * (window + sink_tokens)):
        keys = numbered(t, 1)
        with torch.no_grad():
            assert cache.append(keys, -keys).in_slots
        held = cache.keys[0, : t + 1, 0, 0].tolist()
        latest = range(max(t + 1 - window, sink_tokens), t + 1)
        assert sorted(held) == [*range(min(sink_tokens, t + 1)), *latest]
        assert torch.equal(cache.values, -cache.keys)
        assert cache.wrapped == (t + 1 >= window + sink_tokens)


@rings
@capacities
def test_it_stops_growing(window, sink_tokens, capacity):
    cache, sizes = ring(window, sink_tokens, capacity), []
    for piece in (3, 1, 1, 40, 1, 100):
        attend(cache, *draw(1, piece))
        sizes.append(cache.keys.shape[1])
        held = min(int(cache.lengths), window + sink_tokens)
        assert cache.nbytes() == 2 * held * GROUPS * WIDTH * 8
    assert max(sizes) == window + sink_tokens
    assert sizes == sorted(sizes)


def test_a_row_that_adds_nothing_loses_nothing():
    cache = ring(4, 1, batch=2)
    for piece in (9, 1, 1):
        attend(cache, *draw(2, piece))
    before = cache.keys.clone()
    for length in (1, 3):
        attend(cache, *draw(2, length), torch.tensor([0, length]))
        assert torch.equal(cache.keys[0], before[0])
        assert not torch.equal(cache.keys[1], before[1])
    assert cache.lengths.tolist() == [11, 15]


def test_it_holds_no_graph():
    cache, arrays = ring(4, 1), [x.requires_grad_() for x in draw(1, 9)]
    for start in (0, 8):
        assert attend(cache, *(x[:, start : start + 8] for x in arrays)).shape[1] in (8, 1)
    assert not cache.keys.requires_grad
    assert not cache.values.requires_grad
