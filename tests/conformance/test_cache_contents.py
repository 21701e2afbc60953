"""What a cache holds can be saved, taken apart by rows and put together, and the pieces that follow do not notice."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn

from tests.conformance.cases import HEADS, assert_equal, draw, every_mixer, every_name, make, new_cache, tensors
from tests.tiers import in_ci, named
from zoo.mixers.caches import Cache

ROWS = 3
STARTS = {"even": [41, 41, 41], "uneven": [70, 33, 5], "nothing yet": [0, 0, 0]}
every_start = pytest.mark.parametrize("earlier", named(STARTS, "uneven"))
FURTHER = [(1, None), (7, [7, 2, 0]), (1, [0, 1, 1]), (1, None), (30, None)]  # tokens of pieces, and their lengths


def started(mixer, earlier, capacity=None):
    """A cache that holds so many tokens in each row."""
    cache, longest = new_cache(mixer, len(earlier), capacity), max(earlier)
    even = len(set(earlier)) == 1
    with torch.no_grad():
        mixer(draw(len(earlier), longest), cache=cache, lengths=None if even else torch.tensor(earlier))
    return cache


def further(mixer, cache, rows=(0, 1, 2)):
    """Outputs of a few more pieces of some of three rows, zeros on padding."""
    torch.manual_seed(1)
    outputs = []
    with torch.no_grad():
        for length, lengths in FURTHER:
            counts = torch.tensor(lengths or [length] * ROWS)
            real = torch.arange(length) < counts[:, None]
            x, at = draw(ROWS, length), list(rows)
            y = mixer(x[at], cache=cache, lengths=None if lengths is None else counts[at])
            outputs.append(y.masked_fill(~real[at][..., None], 0))
    return torch.cat(outputs, 1)


def flat(state, prefix=""):
    """The values of a state dict and of those in it, by their path."""
    found = {}
    for key, value in state.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


def assert_same_state(got, want):
    got, want = flat(got), flat(want)
    assert list(got) == list(want)
    for key, value in want.items():
        equal = torch.equal(got[key], value) if isinstance(value, torch.Tensor) else got[key] == value
        assert equal, key


@every_mixer
@every_start
def test_a_new_cache_with_a_saved_state_goes_on_as_the_first_would(name, options, earlier):
    mixer = make(name, options)
    cache, file = started(mixer, earlier), io.BytesIO()
    assert isinstance(cache, Cache)
    torch.save(cache.state_dict(), file)
    file.seek(0)
    state, loaded = torch.load(file, weights_only=True), started(mixer, [4, 9, 2])
    loaded.load_state_dict(state)
    assert_same_state(loaded.state_dict(), state)
    assert loaded.nbytes() == cache.nbytes()
    want = further(mixer, cache)
    assert torch.equal(further(mixer, loaded), want)
    assert_same_state(loaded.state_dict(), cache.state_dict())
    again = new_cache(mixer, ROWS, 200)
    again.load_state_dict(state)  # neither the cache that was saved nor the one that was loaded has written to it
    assert_equal(further(mixer, again), want)


@every_mixer
@every_start
def test_rows_that_are_taken_out_and_joined_are_the_cache_that_they_were(name, options, earlier):
    mixer = make(name, options)
    cache = started(mixer, earlier)
    kept = cache.state_dict()
    joined = cache.rows([0]).join(cache.rows(torch.tensor([1, 2])))
    assert_same_state(joined.state_dict(), kept)
    assert joined.nbytes() == cache.nbytes()
    got = further(mixer, joined)
    assert_same_state(cache.state_dict(), kept)  # what was taken out is a copy
    assert_equal(got, further(mixer, cache))


@every_mixer
@every_start
def test_rows_go_on_alone_in_another_order_and_more_than_once(name, options, earlier):
    mixer = make(name, options)
    cache, index = started(mixer, earlier), [2, 0, 0]
    some = [cache.rows(index), cache.rows([1]), cache.rows([])]
    assert [taken.lengths.tolist() for taken in some] == [[earlier[i] for i in index], [earlier[1]], []]
    assert some[2].nbytes() == 0
    want = further(mixer, cache)
    assert_equal(further(mixer, some[0], index), want[index])
    assert_equal(further(mixer, some[1], [1]), want[[1]])
    assert_equal(further(mixer, some[2].join(cache.rows([2])).rows([0]), [2]), further(mixer, cache.rows([2]), [2]))


@every_mixer
@every_start
def test_bytes_are_those_of_the_numbers_of_the_state(name, options, earlier):
    mixer = make(name, options)
    cache = started(mixer, earlier, capacity=300)
    for piece in (1, 20):
        held = [value for value in flat(cache.state_dict()).values() if isinstance(value, torch.Tensor)]
        assert cache.nbytes() == sum(value.nbytes for value in held if value.is_floating_point())
        with torch.no_grad():
            mixer(draw(ROWS, piece), cache=cache)


@every_mixer
def test_a_piece_of_other_rows_is_refused_by_the_cache_itself(name, options):
    """Before anything is written: a piece of one row would otherwise fit all of them."""
    cache = started(make(name, options), [9, 4, 2])
    kept = cache.state_dict()
    for leaf in cache.leaves():
        if not hasattr(leaf, "append"):
            continue
        keys, values = (
            getattr(leaf, part).new_ones(1, 2, *getattr(leaf, part).shape[2:]) for part in ("keys", "values")
        )
        more = {"flags": torch.zeros(1, 2, dtype=torch.bool)} if "flags" in leaf.by_slot else {}
        with pytest.raises(ValueError, match=r"k has 1 rows and the cache 3: make one with new_cache\(1\)"):
            leaf.append(keys, values, **more)
    assert_same_state(cache.state_dict(), kept)


@every_name
def test_what_does_not_fit_is_refused_before_anything_is_written(name):
    mixer, other = make(name), make(name, heads=2 * HEADS)
    cache = started(mixer, [9, 4, 2])
    kept, numbers = cache.state_dict(), copy.deepcopy(vars(cache))
    states = {
        "the state is of the cache": started(other, [9, 4, 2]).state_dict(),
        "the state has 2 rows and the cache 3": cache.rows([0, 1]).state_dict(),
        "the state has ": {},
        " of the state is of torch.float16 and the cache of torch.float64": _halved(kept),
    }
    calls = [(message, cache.load_state_dict, state) for message, state in states.items()]
    calls += [("the other cache is ", cache.join, thing) for thing in (new_cache(other, 3), mixer, [])]
    calls += [("the other cache is on meta", cache.join, mixer.new_cache(3, device="meta", dtype=torch.float64))]
    if mixer.new_cache(1, dtype=torch.float16).dtype == torch.float16:
        calls += [("the other cache is of torch.float16", cache.join, mixer.new_cache(3, dtype=torch.float16))]
    calls += [("expected numbers of rows, 0 to 2", cache.rows, index) for index in ([3], [-1], [0.5], [True], 1, [[0]])]
    for message, method, given in calls:
        with pytest.raises(ValueError) as refusal:
            method(given)
        assert message in str(refusal.value) and "\n" not in str(refusal.value)
    assert_same_state(cache.state_dict(), kept)
    assert vars(cache).keys() == numbers.keys() and all(map(torch.equal, tensors(cache), tensors(numbers)))


def _halved(state):
    """The same with numbers of another type."""
    halve = {dict: _halved, torch.Tensor: lambda x: x.half() if x.is_floating_point() else x}
    return {key: halve.get(type(value), lambda x: x)(value) for key, value in state.items()}


@every_mixer
@pytest.mark.parametrize(("earlier", "length"), [(40, 7), *in_ci((1, 1), (1, 7), (40, 1), (100, 1), (100, 7))])
def test_gradients_of_a_piece_are_those_of_the_whole_with_its_earlier_part_as_a_constant(
    name, options, earlier, length
):
    mixer = make(name, options)
    x, weight = draw(2, earlier + length), draw(2, length)
    first, piece = x[:, :earlier], x[:, earlier:].clone().requires_grad_()
    parts = (getattr(mixer, part, None) for part in ("query", "key", "value", "out"))
    leaves = [piece, *(part.weight for part in parts if part is not None)]
    cache = new_cache(mixer, 2)
    with torch.no_grad():
        mixer(first, cache=cache)
    got = torch.autograd.grad((mixer(piece, cache=cache) * weight).sum(), leaves)

    def without_graph(module, inputs, output):
        return torch.cat([output[:, :earlier].detach(), output[:, earlier:]], 1)

    for module in mixer.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(without_graph)
    whole = mixer(torch.cat([first, piece], 1))
    want = torch.autograd.grad((whole[:, earlier:] * weight).sum(), leaves)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)
    assert got[0].any() and got[-1].any()
