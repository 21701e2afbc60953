"""BigBird: which blocks are read, that the random ones are random and never change, and what it costs."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import zoo
from zoo.mixers.bigbird import bigbird_blocks, sample
from zoo.mixers.parts.patterns import hashed

HEADS = 4
NUMBERS = "window_blocks", "random_blocks", "global_blocks"


def build(name="bigbird", **options):
    torch.manual_seed(0)
    given = {"width": 32, "heads": HEADS, "depth": 3} | options
    return zoo.mixers.build(name, **given).double()


def draw(length):
    return torch.randn(2, length, 32, dtype=torch.float64)


def lists(count, **options):
    """``(H or 1, count, L)`` of all query blocks."""
    given = {"window_blocks": 2, "random_blocks": 3, "global_blocks": 1} | options
    return bigbird_blocks(torch.arange(count), **({"seed": 0, "layer": 0, "heads": HEADS} | given))


@pytest.mark.parametrize(NUMBERS, [(1, 0, 0), (2, 3, 1), (3, 1, 2), (1, 4, 0), (4, 2, 6)])
def test_each_list_is_the_globals_the_window_and_a_draw_from_all_between(window_blocks, random_blocks, global_blocks):
    for i in range(30):
        numbers = window_blocks, random_blocks, global_blocks
        listed = lists(30, **dict(zip(NUMBERS, numbers)))[:, i].tolist()
        for row in listed:
            row = [j for j in row if 0 <= j <= i]
            fixed = {*range(min(global_blocks, i + 1)), *range(max(i - window_blocks + 1, 0), i + 1)}
            between = set(range(global_blocks, i - window_blocks + 1))
            drawn = [j for j in row if j not in fixed]
            assert fixed <= set(row)
            assert len(drawn) == len(set(drawn)) == min(random_blocks, len(between))
            assert set(drawn) <= between


@pytest.mark.parametrize("random_blocks", [0, 2, 5])
def test_lists_are_a_prefix_of_those_of_a_longer_sequence(random_blocks):
    assert torch.equal(lists(20, random_blocks=random_blocks), lists(57, random_blocks=random_blocks)[:, :20])
    assert torch.equal(lists(57, random_blocks=random_blocks)[:, 41:42], bigbird_blocks(
        torch.tensor([41]), window_blocks=2, random_blocks=random_blocks, global_blocks=1, seed=0, layer=0, heads=HEADS
    ))  # fmt: skip


def test_heads_layers_and_seeds_have_draws_of_their_own():
    drawn = [lists(60, layer=layer, seed=seed)[h, :, 3:] for h in range(3) for layer in (0, 1) for seed in (0, 1)]
    for a, b in itertools.combinations(drawn, 2):
        assert (a[10:].sort().values != b[10:].sort().values).any(-1).double().mean() > 0.8


def test_the_draw_is_known():
    """A seed is a promise: what was trained with it must find the same blocks again."""
    assert lists(40, random_blocks=3)[:2, 39, 3:].tolist() == [[5, 26, 13], [7, 30, 23]]


@pytest.mark.parametrize(("population", "count"), [(5, 2), (6, 3), (4, 3), (7, 1)])
def test_every_subset_is_equally_likely(population, count):
    draws = 30_000
    drawn = sample(torch.tensor([population]), count, hashed(torch.arange(draws)[:, None]))[:, 0].sort().values
    found, counts = drawn.unique(dim=0, return_counts=True)
    assert [tuple(x) for x in found.tolist()] == list(itertools.combinations(range(population), count))
    expected = draws / len(found)
    assert ((counts - expected) ** 2 / expected).sum() < 3 * len(found) + 10


def test_far_blocks_are_drawn_as_often_as_near_ones():
    listed = lists(60, heads=20_000)[:, 50:51, 3:].flatten()
    counts = listed.bincount(minlength=50)
    assert not counts[0] and not counts[49:].any()
    assert (counts[1:49] / counts.sum() * 48 - 1).abs().max() < 0.15


@pytest.mark.parametrize(("population", "count"), [(0, 3), (1, 3), (3, 3), (3, 0)])
def test_all_are_drawn_where_there_are_no_more(population, count):
    drawn = sample(torch.tensor([population]), count, hashed(torch.arange(9)[:, None]))
    assert drawn.shape == (9, 1, count)
    kept = min(population, count)
    assert (drawn[..., :kept] == torch.arange(kept)).all()
    assert (drawn[..., kept:] == -1).all()


@pytest.mark.parametrize(NUMBERS, [(7, 0, 0), (1, 6, 0), (1, 0, 6), (2, 3, 2), (9, 9, 9)])
def test_as_many_blocks_as_there_are_equal_full_attention(window_blocks, random_blocks, global_blocks):
    numbers = {"window_blocks": window_blocks, "random_blocks": random_blocks, "global_blocks": global_blocks}
    sparse, full, x = build(block=16, **numbers), build("softmax"), draw(100)
    full.load_state_dict(sparse.state_dict())
    torch.testing.assert_close(sparse(x), full(x), rtol=1e-11, atol=1e-11)


def test_one_block_fewer_is_not_full_attention():
    sparse, full, x = build(block=16, window_blocks=2, random_blocks=2, global_blocks=2), build("softmax"), draw(100)
    full.load_state_dict(sparse.state_dict())
    torch.testing.assert_close(sparse(x)[:, :96], full(x)[:, :96], rtol=1e-11, atol=1e-11)
    assert (sparse(x)[:, 96:] - full(x)[:, 96:]).abs().amax(-1).min() > 1e-6


@pytest.mark.parametrize("window_blocks", [1, 2, 3])
def test_without_globals_and_random_blocks_it_is_a_local_window_of_blocks(window_blocks):
    mixer, x = build(block=16, window_blocks=window_blocks, random_blocks=0, global_blocks=0, rope_theta=None), draw(90)
    q, k, v = (m(x).unflatten(-1, (HEADS, 8)).transpose(1, 2) for m in (mixer.query, mixer.key, mixer.value))
    time = torch.arange(90)
    shown = (time[:, None] >= time) & (time[:, None] // 16 - time // 16 < window_blocks)
    weights = (q @ k.mT / 8**0.5).masked_fill(~shown, -torch.inf).softmax(-1)
    torch.testing.assert_close(mixer(x), mixer.out((weights @ v).transpose(1, 2).flatten(2)), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    ("options", "want"), [({}, [0, 2, 3]), ({"global_blocks": 0}, [2, 3]), ({"window_blocks": 3}, [0, 1, 2, 3])]
)
def test_a_token_hears_of_the_blocks_of_its_list_and_of_no_others(options, want):
    given = {"window_blocks": 2, "random_blocks": 0, "global_blocks": 1} | options
    mixer, x = build(block=16, **given), draw(64).requires_grad_()
    (grad,) = torch.autograd.grad(mixer(x)[0, -1].sum(), x)
    assert grad[0].unflatten(0, (4, 16)).any(-1).any(-1).nonzero()[:, 0].tolist() == want


def test_training_and_evaluation_read_the_same():
    mixer, x = build(block=16, window_blocks=1, random_blocks=1), draw(120)
    assert torch.equal(mixer.train()(x), mixer.eval()(x))


def test_at_8192_tokens_at_most_a_sixth_of_the_pairs_is_read():
    assert build().pattern.layout(8192, "cpu").density(8192) <= 0.16
    assert build().pattern.pairs(8192) / (8192 * 8193 / 2) <= 0.16


def test_counted_flops_are_those_of_the_listed_blocks():
    mixer, x = build(block=16, window_blocks=2, random_blocks=2, global_blocks=1), draw(200).requires_grad_()
    entries = (mixer.pattern.lists(torch.arange(13)) >= 0).sum().item()
    with FlopCounterMode(display=False) as counter:
        y = mixer(x)
    projections = 2 * 400 * sum(p.numel() for p in mixer.parameters())
    assert counter.get_total_flops() == projections + 2 * entries * 16**2 * 2 * 16
    with FlopCounterMode(display=False) as counter:
        y.sum().backward()
    assert counter.get_total_flops() == 2 * projections + 2 * entries * 16**2 * 2 * 40


def test_costs_do_not_grow_with_the_context():
    mixer, width = build(width=64, heads=2), 64
    far, further = mixer.cost(65_536), mixer.cost(131_072)
    assert further.flops_per_token == pytest.approx(far.flops_per_token, rel=0.01)
    assert far.decode_flops_per_token == further.decode_flops_per_token == 8 * width**2 + 4 * width * 7 * 64
    assert further.cache_bytes == 2 * far.cache_bytes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window_blocks": 0}, "window_blocks=0: expected at least 1 block"),
        ({"random_blocks": -1}, "random_blocks=-1 and global_blocks=1"),
        ({"global_blocks": -2}, "global_blocks=-2"),
        ({"block": 24}, "block=24: expected one of 16, 32, 64, 128"),
    ],
)
def test_counts_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)
