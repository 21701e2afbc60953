"""Gradients of a piece: exact for its own tokens and parameters, with what the cache held before as a constant.

The oracle is the definition: differences of the outputs without gradients, computed from copies of one cache.
"""

from __future__ import annotations

import copy

import pytest
import torch

from tests.conformance.cases import CASES, assert_equal, draw, every_mixer, make, new_cache, tensors, with_slow_shapes
from tests.tiers import named

ROWS, STEP = 3, 1e-7  # small: a choice of blocks must not change
EVEN, UNEVEN = [70, 70, 70], [70, 33, 0]
CHOICES = {"logits"}  # of distances that are read or not: outputs do not change with them little by little
PIECES = {
    "one token": (EVEN, 1, None),
    "two": (UNEVEN, 2, None),
    "many": (EVEN, 30, None),
    "one token of some rows": (UNEVEN, 1, [1, 0, 1]),
    "ragged": (UNEVEN, 19, [7, 19, 2]),
}
every_piece = pytest.mark.parametrize("piece", named(PIECES, "ragged"))


def started(mixer, earlier):
    """A cache that holds so many tokens in each row."""
    cache = new_cache(mixer, ROWS)
    with torch.no_grad():
        even = len(set(earlier)) == 1
        mixer(draw(ROWS, max(earlier)), cache=cache, lengths=None if even else torch.tensor(earlier))
    return cache


def setting(name, options, piece):
    """A mixer with its cache, the piece, and a loss of the piece's inputs and a cache."""
    earlier, length, lengths = piece
    mixer = make(name, options)
    cache, x, weight = started(mixer, earlier), draw(ROWS, length), draw(ROWS, length)
    lengths = None if lengths is None else torch.tensor(lengths)
    if lengths is not None:
        weight[torch.arange(length) >= lengths[:, None]] = 0
    return mixer, cache, x, lambda x, cache: (mixer(x, cache=cache, lengths=lengths) * weight).sum()


def difference(loss, tensors, directions):
    """Derivative of a loss along directions of tensors, from two values."""
    values = []
    with torch.no_grad():
        for step in (STEP, -STEP):
            torch._foreach_add_(tensors, directions, alpha=step)
            values.append(loss())
            torch._foreach_sub_(tensors, directions, alpha=step)
    return (values[0] - values[1]) / (2 * STEP)


@every_mixer
@every_piece
def test_a_piece_has_the_gradients_of_its_tokens_and_parameters(name, options, piece):
    """And leaves a cache that holds no graph, and what it holds without gradients."""
    mixer, cache, x, loss = setting(name, options, piece)
    leaves = [x, *(p for key, p in mixer.named_parameters() if key not in CHOICES)]
    directions = [torch.randn_like(leaf) for leaf in leaves]
    want = difference(lambda: loss(x, copy.deepcopy(cache)), leaves, directions)
    silent = copy.deepcopy(cache)
    with torch.no_grad():
        loss(x, silent)
    grads = torch.autograd.grad(loss(x.requires_grad_(), cache), leaves)
    products = torch.stack([(grad * direction).sum() for grad, direction in zip(grads, directions)])
    size = sum(grad.norm() * direction.norm() for grad, direction in zip(grads, directions))
    assert size > 0 and abs(products.sum() - want) < 1e-7 * size
    assert not any(held.requires_grad for held in tensors(cache))
    assert [t.dtype for t in tensors(cache)] == [t.dtype for t in tensors(silent)]
    assert torch.equal(cache.lengths, silent.lengths) and cache.nbytes() == silent.nbytes()
    with torch.no_grad():
        assert_equal(*(mixer(x, cache=one) for one in (cache, silent)))


@with_slow_shapes
def test_later_pieces_do_not_disturb_the_gradients_of_earlier_ones(name, options):
    """They write to the same cache, in place where no gradient is asked for."""
    mixer, cache, x, loss = setting(name, options, PIECES["one token"])
    leaves = [x.requires_grad_(), *(p for key, p in mixer.named_parameters() if key not in CHOICES)]
    want, late = torch.autograd.grad(loss(x, copy.deepcopy(cache)), leaves), loss(x, cache)
    with torch.no_grad():
        for _ in range(3):
            mixer(draw(ROWS, 1), cache=cache)
    loss(x, cache)
    assert all(map(torch.equal, torch.autograd.grad(late, leaves), want))


def test_parameters_that_choose_have_the_gradient_of_the_whole_sequence():
    """Their estimators take queries, keys and values for constants, so that the cache makes no difference."""
    mixers = (make(name, options) for name, options in CASES)
    choosing = [(mixer, chosen) for mixer in mixers if (chosen := [*choices(mixer)])]
    assert choosing
    for mixer, chosen in choosing:
        check_choices(mixer, chosen)


def choices(mixer):
    return (p for key, p in mixer.named_parameters() if key in CHOICES)


def check_choices(mixer, chosen):
    x, weight = draw(ROWS, 100), draw(ROWS, 100)
    for cut in (99, 98, 70):
        cache = new_cache(mixer, ROWS)
        with torch.no_grad():
            mixer(x[:, :cut], cache=cache)
        want = torch.autograd.grad((mixer(x)[:, cut:] * weight[:, cut:]).sum(), chosen)
        got = torch.autograd.grad((mixer(x[:, cut:], cache=cache) * weight[:, cut:]).sum(), chosen)
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)
        assert all(grad.any() for grad in got)
