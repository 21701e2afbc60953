"""HGRN2: its recurrence in the first and in later layers, and its lower bound."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import zoo
from tests.mixers.recurrences import assert_equals, close, draw, drawn, heads, normed, recur, through
from zoo.mixers.parts.call import Call


def oracle(mixer, x):
    q, f, v = (heads(through(matrix, x), mixer.heads) for matrix in (mixer.query, mixer.key, mixer.value))
    kept = torch.sigmoid(f)
    if mixer.lower_bound is not None:
        gamma = torch.sigmoid(mixer.lower_bound).view(mixer.heads, -1)
        kept = gamma + (1 - gamma) * kept
    o = recur(q * torch.sigmoid(q) / mixer.head_dim**0.5, 1 - kept, v, kept).flatten(2)
    return through(mixer.out, normed(o, mixer.norm.weight, 1e-5))


@pytest.mark.parametrize("layer", [0, 2])
def test_equals_the_recurrence_token_by_token(layer):
    assert_equals(drawn("hgrn2", depth=4, layer=layer, head_dim=6, value_dim=5), oracle)


def test_it_is_gla_whose_keys_are_what_is_forgotten(monkeypatch):
    monkeypatch.setattr("zoo.mixers.gla.TEMPERATURE", 1)
    mixer, gla, x = drawn("hgrn2"), drawn("gla", head_dim=8, decay_rank=16), draw(2, 70, 16)
    with torch.no_grad():
        gla.decay.down.weight.copy_(mixer.key.weight)
        gla.decay.up.weight.copy_(torch.eye(16))
        gla.decay.bias.zero_()
    call = Call(x, torch.arange(70)[None], None, None, None, None)
    q, f, v = (heads(through(matrix, x), 2) for matrix in (mixer.query, mixer.key, mixer.value))
    close(gla.mix(F.silu(q), 1 - torch.sigmoid(f), v, call), mixer.mix(q, f, v, call))


@pytest.mark.parametrize(("layer", "depth"), [(1, 4), (3, 4), (11, 12)])
def test_the_lower_bound_starts_at_the_layer_over_the_depth(layer, depth):
    mixer = zoo.mixers.build("hgrn2", width=64, heads=4, depth=depth, layer=layer)
    torch.testing.assert_close(mixer.lower_bound.sigmoid(), torch.full((64,), layer / depth))
    x = 1e3 * torch.randn(1, 20, 64)
    chosen = mixer.key(x).sigmoid()
    cache = mixer.new_cache(1)
    mixer(x, cache=cache)
    assert torch.isfinite(cache.state).all()
    assert chosen.min() < 1e-6


def test_the_first_layer_has_no_lower_bound_and_may_forget_all():
    mixer, x = drawn("hgrn2", depth=4), draw(1, 5, 16)
    assert mixer.lower_bound is None
    with torch.no_grad():
        mixer.key.weight.copy_(1e6 * mixer.key.weight)
    y = mixer(x.requires_grad_())
    y.square().sum().backward()
    assert torch.isfinite(y).all()
    assert torch.isfinite(x.grad).all()
