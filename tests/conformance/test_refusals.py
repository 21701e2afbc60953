"""What does not fit is refused in one line, before a cache is touched; what stands on padding reaches nothing."""

from __future__ import annotations

import copy

import pytest
import torch

from tests.conformance.cases import (
    HEADS,
    WIDTH,
    draw,
    every_name,
    make,
    new_cache,
    tensors,
    with_slow_shapes,
)
from tests.tiers import named

ROWS, LENGTH = 3, 4


def started(mixer, earlier=(70, 33, 5)):
    """A cache that holds so many tokens in each row."""
    cache = new_cache(mixer, ROWS)
    with torch.no_grad():
        mixer(draw(ROWS, max(earlier)), cache=cache, lengths=torch.tensor(earlier))
    return cache


def numbers(thing):
    """What a cache holds beside tensors."""
    if isinstance(thing, torch.Tensor):
        return None
    if hasattr(thing, "__dict__"):
        return {key: numbers(value) for key, value in vars(thing).items()}
    return [numbers(value) for value in thing] if isinstance(thing, list | tuple) else thing


PIECES = {
    "fewer rows": (lambda x: x[:1], "x has 1 rows and the cache 3: make one with new_cache(1)"),
    "more rows": (lambda x: torch.cat([x, x]), "x has 6 rows and the cache 3"),
    "narrow": (lambda x: x[..., :-1], f"x has shape (3, 4, 31), expected (batch, tokens, width={WIDTH})"),
    "two dimensions": (lambda x: x[0], f"x has shape (4, 32), expected (batch, tokens, width={WIDTH})"),
    "fp32": (lambda x: x.float(), "x is of torch.float32 and the weights of torch.float64"),
    "integers": (lambda x: x.long(), "x is of torch.int64 and the weights of torch.float64"),
}
LENGTHS = {
    "fewer": ([1, 2], "lengths has shape (2,), expected (3,)"),
    "a number": (3, "lengths has shape (), expected (3,)"),
    "floats": ([1.0, 2.0, 3.0], "lengths is of torch.float32: expected integers"),
    "booleans": ([True, False, True], "lengths is of torch.bool: expected integers"),
    "longer": ([1, 5, 3], "lengths=[1, 5, 3]: expected the true length of each row of the piece, 0 to 4; not 5"),
    "negative": ([1, -1, 3], "lengths=[1, -1, 3]: expected the true length of each row of the piece, 0 to 4; not -1"),
}


@with_slow_shapes
def test_a_piece_that_does_not_fit_leaves_the_cache_as_it_is(name, options):
    mixer = make(name, options)
    cache, x = started(mixer), draw(ROWS, LENGTH)
    kept = copy.deepcopy(cache)
    calls = [((change(x),), {}, message) for change, message in PIECES.values()]
    calls += [((x,), {"lengths": torch.tensor(given)}, message) for given, message in LENGTHS.values()]
    calls += [((x[:, :1],), {"lengths": torch.tensor([0, 1, 2])}, "not 2")]
    calls += [((x,), {"documents": torch.zeros(ROWS, LENGTH, dtype=torch.long)}, "documents and cache")]
    calls += [((x,), {"lengths": [1, 2, 3]}, "lengths is a list: expected a tensor")]
    for arguments, more, message in calls:
        with pytest.raises(ValueError) as refusal:
            mixer(*arguments, cache=cache, **more)
        assert message in str(refusal.value) and "\n" not in str(refusal.value)
        assert all(map(torch.equal, tensors(cache), tensors(kept))) and numbers(cache) == numbers(kept)


@with_slow_shapes
def test_a_cache_of_another_mixer_or_device_is_refused(name, options):
    wider = {"value_dim": 16} if {"head_dim", "value_dim"} & set(options) else {}  # else it follows the model's width
    mixer, x = make(name, options), draw(ROWS, LENGTH)
    others = make(name, options | wider, width=2 * WIDTH), make(name, options | wider, heads=2 * HEADS)
    caches = [new_cache(other, ROWS) for other in others]
    wrong = [*(cache for cache in caches if cache.kind != mixer.cache_kind), [], {}, torch.zeros(3), mixer]
    assert len(wrong) >= 5
    for cache in wrong:
        with pytest.raises(ValueError, match=r"^the cache is .*: give each layer the cache that its own new_cache"):
            mixer(x, cache=cache)
    with pytest.raises(ValueError, match="x is on cpu and the cache on meta"):
        mixer(x, cache=mixer.new_cache(ROWS, device="meta", dtype=torch.float64))


@every_name
def test_inputs_that_do_not_fit_are_refused_without_a_cache_too(name):
    mixer, x = make(name), draw(ROWS, LENGTH)
    for change, message in list(PIECES.values())[2:]:
        with pytest.raises(ValueError) as refusal:
            mixer(change(x))
        assert message in str(refusal.value)
    with pytest.raises(ValueError, match=r"separators has shape \(3, 3\), expected \(3, 4\)"):
        mixer(x, separators=torch.zeros(3, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"documents is of torch.float32: expected integers"):
        mixer(x, documents=torch.zeros(3, 4))


@every_name
def test_a_cache_of_half_precision_of_the_other_kind_is_refused_where_it_would_lose_numbers(name):
    mixer, x = make(name).to(torch.bfloat16), draw(ROWS, LENGTH, torch.bfloat16)
    cache = mixer.new_cache(ROWS, dtype=torch.float16)
    if cache.dtype == torch.float32:  # a state holds both
        assert torch.isfinite(mixer(x, cache=cache)).all()
        return
    with pytest.raises(ValueError, match=r"x is of torch\.bfloat16 and the cache of torch\.float16, of which neither"):
        mixer(x, cache=cache)


@with_slow_shapes
@pytest.mark.parametrize("grad", named({"no_grad": False, "grad": True}, "grad"))
def test_padding_of_a_ragged_piece_reaches_nothing(name, options, grad):
    """Neither real tokens, nor later pieces, nor a gradient; with zeros in its place all is the same."""
    mixer, results = make(name, options), []
    cache = started(mixer)
    pieces = [(draw(ROWS, n), n, [min(n, m) for m in lengths]) for n, lengths in ((9, [2, 9, 0]), (1, [1, 0, 1]))]
    pieces += [(draw(ROWS, 1), 1, [1, 1, 1]), (draw(ROWS, 20), 20, [20, 1, 20])]
    anything = torch.tensor([torch.nan, torch.inf, -torch.inf, 1e300]).repeat(WIDTH // 4).double()
    for value in (torch.zeros_like(anything), anything):
        mine, outputs = copy.deepcopy(cache), []
        with torch.set_grad_enabled(grad):
            for x, n, lengths in pieces:
                real = torch.arange(n) < torch.tensor(lengths)[:, None]
                filled = torch.where(real[..., None], x, value).requires_grad_(grad)
                y = mixer(filled, cache=mine, lengths=torch.tensor(lengths))
                assert torch.isfinite(y).all()
                outputs.append(y[real])
                if grad:
                    outputs += torch.autograd.grad(y.square().sum(), [filled, mixer.out.weight, mixer.value.weight])
        results.append(outputs + tensors(mine))
    assert all(map(torch.equal, *results))
