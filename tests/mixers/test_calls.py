"""What mixers refuse in the same words: documents and lengths that do not fit, algorithms that do not exist."""

from __future__ import annotations

import re

import pytest
import torch

import zoo
from zoo_kernels.linear.api import ALGORITHMS

WIDTH, BATCH, LENGTH = 32, 2, 3
every_name = pytest.mark.parametrize("name", zoo.mixers.names())


def build(name):
    return zoo.mixers.build(name, width=WIDTH, heads=4)


def draw():
    return torch.randn(BATCH, LENGTH, WIDTH)


@every_name
def test_documents_of_another_shape_are_refused(name):
    mixer, x = build(name), draw()
    for shape in ((1, 3), (2, 4), (2, 2), (3,), (2,), (), (2, 3, 1), (3, 3)):
        message = f"documents has shape {shape}, expected (2, 3) for x of shape (2, 3, 32)."
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            mixer(x, documents=torch.zeros(shape, dtype=torch.long))


@every_name
def test_lengths_of_another_shape_are_refused(name):
    mixer, x = build(name), draw()
    for shape in ((1,), (3,), (), (2, 1)):
        message = f"lengths has shape {shape}, expected (2,) for x of shape (2, 3, 32)."
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            mixer(x, cache=mixer.new_cache(BATCH), lengths=torch.ones(shape, dtype=torch.long))


@every_name
def test_lengths_that_a_piece_cannot_have_are_refused_and_leave_the_cache_as_it_is(name):
    mixer, x = build(name), draw()
    cache = mixer.new_cache(BATCH)
    with torch.no_grad():
        for wrong, named in (([5, -1], "5, -1"), ([0, 4], "4"), ([-1, 3], "-1")):
            message = f"lengths={wrong}: expected the true length of each row of the piece, 0 to 3; not {named}."
            with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
                mixer(x, cache=cache, lengths=torch.tensor(wrong))
        assert cache.lengths.tolist() == [0, 0]
        mixer(x, cache=cache, lengths=torch.tensor([0, 3]))
    assert cache.lengths.tolist() == [0, 3]


def test_lengths_on_a_device_are_not_waited_for():
    """On the meta device a value that the host asks for is an error."""
    mixer = build("lightning").to("meta")
    x = torch.randn(BATCH, LENGTH, WIDTH, device="meta")
    cache = mixer.new_cache(BATCH, device="meta")
    mixer(x, cache=cache, lengths=torch.zeros(BATCH, dtype=torch.long, device="meta"))


@pytest.mark.parametrize("name", ["lightning", "linear", "efficient", "ssd", "retention"])
def test_a_wrong_algorithm_is_refused_at_once_with_those_of_the_kernel(name):
    with pytest.raises(ValueError, match=f"algorithm='other': expected one of {', '.join(ALGORITHMS)}"):
        zoo.mixers.build(name, width=32, heads=4, algorithm="other")
    assert [zoo.mixers.build(name, width=32, heads=4, algorithm=a).algorithm for a in ALGORITHMS] == list(ALGORITHMS)
