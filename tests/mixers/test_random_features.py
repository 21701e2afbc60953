"""Orthogonal random projections: their distribution, when they change, and the running maximum."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch

from zoo.mixers.caches import MaximumCache
from zoo.mixers.parts.call import Call
from zoo.mixers.parts.random_features import RandomProjection, orthogonal_rows, running_maximum


def projection(heads=2, features=12, width=8, layer=0, seed=0, redraw=10):
    return RandomProjection(heads, features, width, layer, seed, redraw)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("rows", "width"), [(8, 8), (20, 8), (5, 8), (7, 1)])
def test_rows_are_orthogonal_in_blocks(rows, width):
    drawn = orthogonal_rows(3, rows, width, generator())
    assert drawn.shape == (3, rows, width)
    assert drawn.dtype == torch.float64
    directions = torch.nn.functional.normalize(drawn, dim=-1)
    for block in directions.split(width, 1):
        torch.testing.assert_close(block @ block.mT, torch.eye(block.shape[1]).double().expand(3, -1, -1))


def test_every_row_is_standard_normal():
    """Moments of every coordinate, of first and last rows alike: a QR without its signs leans to one side at once."""
    drawn = orthogonal_rows(20000, 12, 8, generator())
    assert drawn.mean(0).abs().max() < 5 / 20000**0.5
    assert (drawn.square().mean(0) - 1).abs().max() < 5 * (2 / 20000) ** 0.5
    lengths = drawn.square().sum(-1)
    assert abs(lengths.mean() - 8) < 0.05
    assert abs(lengths.var() - 16) < 0.5


def test_positive_features_are_unbiased_along_the_first_axis():
    """The mean estimate is the exact kernel; at q = k = e_0 / 2 it is 0.957 of it without the signs of R."""
    w = orthogonal_rows(20000, 16, 16, generator())
    for axis in (0, 15):
        x = torch.zeros(16).double()
        x[axis] = 0.5
        estimates = (w @ x - x.square().sum() / 2).exp().square().mean(-1) / (x @ x).exp()
        assert abs(estimates.mean() - 1) < 4 * estimates.std() / 20000**0.5 < 0.02


def test_weights_come_from_seed_layer_and_draw_alone():
    first = projection().weight()
    torch.manual_seed(5)
    torch.randn(3)
    assert torch.equal(projection().weight(), first)
    others = [projection(seed=1), projection(layer=1), projection()]
    others[2].train().start_step(10)
    drawn = [first, *(p.weight() for p in others)]
    assert all(not torch.equal(a, b) for i, a in enumerate(drawn) for b in drawn[:i])
    assert not torch.equal(first[0], first[1])


def test_the_global_generator_is_left_alone():
    torch.manual_seed(5)
    want = torch.randn(3)
    torch.manual_seed(5)
    projection().train().start_step(10)
    assert torch.equal(torch.randn(3), want)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_no_cast_touches_the_weights(dtype):
    p = projection()
    before = p.weight().clone()
    assert torch.equal(p.to(dtype).weight(), before)
    x = torch.randn(1, 3, 2, 8).to(dtype)
    got = p(x)
    assert got.dtype == torch.promote_types(dtype, torch.float32)
    torch.testing.assert_close(got, torch.einsum("bthd,hfd->bthf", x.to(got.dtype), before.to(got.dtype)))


def test_autocast_does_not_round_the_product():
    p, x = projection(), torch.randn(1, 3, 2, 8)
    with torch.autocast("cpu", torch.bfloat16):
        got = p(x)
    assert torch.equal(got, p(x))


def test_weights_change_only_at_multiples_of_redraw_and_only_in_training():
    p = projection(redraw=3)
    seen = []
    for step in range(9):
        p.eval().start_step(step + 100)
        p.train().start_step(step)
        seen.append(p.weight().clone())
    changes = [not torch.equal(a, b) for a, b in itertools.pairwise(seen)]
    assert changes == [False, False, True, False, False, True, False, False]


@pytest.mark.parametrize("redraw", [0, None])
def test_weights_can_be_kept_for_good(redraw):
    p = projection(redraw=redraw)
    before = p.weight().clone()
    p.train().start_step(10**6)
    assert torch.equal(p.weight(), before)


@pytest.mark.parametrize("step", [0, 5, 10, 25])
def test_weights_of_a_step_do_not_depend_on_the_way_there(step):
    """A run that is resumed, one that starts there, and one that went through every step before."""
    through, jumped, loaded = (projection().train() for _ in range(3))
    for s in range(step + 1):
        through.start_step(s)
    jumped.start_step(step)
    assert torch.equal(jumped.weight(), through.weight())
    loaded.load_state_dict(through.state_dict())
    assert torch.equal(loaded.weight(), through.weight())
    loaded.start_step(step)
    assert torch.equal(loaded.weight(), through.weight())
    loaded.start_step(3)
    assert torch.equal(loaded.weight(), projection().weight())


def test_loaded_weights_of_another_draw_are_replaced_at_the_next_step():
    late, fresh = projection().train(), projection().train()
    late.start_step(25)
    fresh.start_step(0)
    fresh.load_state_dict(late.state_dict())
    fresh.start_step(0)
    assert torch.equal(fresh.weight(), projection().weight())


def test_a_copy_and_a_module_without_memory_can_be_made():
    p = projection()
    assert torch.equal(copy.deepcopy(p).weight(), p.weight())
    with torch.device("meta"):
        assert projection().weight().device.type == "meta"


@pytest.mark.parametrize(("change", "message"), [({"features": 0}, "features=0"), ({"redraw": -1}, "redraw=-1")])
def test_wrong_numbers_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        projection(**change)


def call(peaks, documents=None, cache=None, lengths=None):
    length = peaks.shape[1]
    positions = torch.arange(length)[None]
    if documents is not None:
        rows = [[sum(d == e for e in row[:t]) for t, d in enumerate(row)] for row in documents.tolist()]
        positions = torch.tensor(rows)
    if cache is not None:
        positions = positions + cache.lengths[:, None]
    return Call(peaks, positions, documents, None, cache, lengths)


def naive(peaks):
    """Of one document ``(T, H)``."""
    top = torch.stack([peaks[: t + 1].amax(0) for t in range(len(peaks))])
    decay = torch.zeros_like(top)
    decay[1:] = top[:-1] - top[1:]
    return top, decay


@pytest.mark.parametrize(
    "lengths", [[1], [2], [7], [64], [130], [1, 1, 1], [3, 1, 60, 66], [65, 64, 1], [129, 1]], ids=str
)
def test_the_maximum_of_packed_documents_is_that_of_each_alone(lengths):
    """Equal to the bit, with a first document that is far above the others."""
    documents = torch.cat([torch.full((n,), 5 * i % 7) for i, n in enumerate(lengths)])[None]
    level = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    peaks = torch.randn(1, sum(lengths), 3) - 1e4 * level[None, :, None]
    got = running_maximum(peaks, call(peaks, documents))
    want = [torch.cat(parts)[None] for parts in zip(*map(naive, peaks[0].split(lengths)))]
    assert all(map(torch.equal, got, want))
    assert (got[1] <= 0).all()


def test_the_maximum_without_documents():
    peaks = torch.randn(2, 50, 3)
    top, decay = running_maximum(peaks, call(peaks))
    for row in range(2):
        want = naive(peaks[row])
        assert torch.equal(top[row], want[0])
        assert torch.equal(decay[row], want[1])


def test_padding_neither_raises_the_maximum_nor_decays():
    peaks, cache = torch.randn(2, 6, 3), MaximumCache((2, 3, 4, 5), None, None)
    peaks[0, 4:], peaks[1, 1:] = 1e6, 1e6
    lengths = torch.tensor([4, 0])
    top, decay = running_maximum(peaks, call(peaks, cache=cache, lengths=lengths))
    assert torch.equal(top[0, :4], naive(peaks[0, :4])[0])
    assert torch.equal(top[:, 4:], peaks[:, 4:])  # no exponent of padding is positive
    assert torch.equal(decay[0, :4], naive(peaks[0, :4])[1])
    assert not decay[0, 4:].any()
    assert torch.equal(cache.maximum, torch.stack([top[0, 3], torch.full((3,), -torch.inf)]))


def test_the_maximum_goes_on_through_a_cache():
    peaks, cache = torch.randn(2, 20, 3), MaximumCache((2, 3, 4, 5), None, None)
    parts = []
    for piece in peaks.split([5, 1, 13, 1], 1):
        parts.append(running_maximum(piece, call(piece, cache=cache)))
        cache.lengths = cache.lengths + piece.shape[1]
    want = running_maximum(peaks, call(peaks))
    assert all(torch.equal(torch.cat(got, 1), whole) for got, whole in zip(zip(*parts), want))
