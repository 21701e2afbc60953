"""Mamba-2: its recurrence with groups, its core, and its initial values."""

from __future__ import annotations

import pytest
import torch
from transformers.models.bamba.modeling_bamba import BambaConfig, BambaMixer
from transformers.models.mamba2.modeling_mamba2 import Mamba2Config, Mamba2Mixer

import zoo
from tests.mixers.published import assert_same, drawn_layer, from_mamba2, rebuilt
from tests.mixers.recurrences import (
    assert_equals,
    close,
    convolved,
    draw,
    drawn,
    heads,
    normed,
    recur,
    softplus,
    through,
)

OPTIONS = [{}, {"kv_heads": 2, "head_dim": 6, "value_dim": 5}]


def oracle(mixer, x):
    groups, count = mixer.kv_heads, mixer.heads
    q, k, v = convolved(mixer, x)
    q, k = (heads(part, groups).repeat_interleave(count // groups, 2) for part in (q, k))
    v, step = heads(v, count), softplus(through(mixer.decay.projection, x) + mixer.decay.bias)
    o = recur(q, step[..., None] * k, v, torch.exp(-mixer.decay.log_rate.exp() * step))
    o = (o + mixer.skip[:, None] * v).flatten(2)
    gate = through(mixer.modulation, x)
    o = normed((o * gate * torch.sigmoid(gate)).unflatten(-1, (groups, -1)), torch.ones(()), mixer.norm_eps)
    return through(mixer.out, o.flatten(2) * mixer.norm_weight)


@pytest.mark.parametrize("options", OPTIONS)
def test_equals_the_recurrence_token_by_token(options):
    assert_equals(drawn("mamba2", heads=4, **options), oracle)


def test_without_convolution_skip_and_gate_it_is_the_core_of_ssd():
    """With keys and queries of each head; norms over a group and over all heads differ, so none is taken."""
    mamba, ssd, x = drawn("mamba2", kv_heads=2, conv=0, value_dim=8), drawn("ssd"), draw(2, 70, 16)
    with torch.no_grad():
        mamba.skip.zero_()
        for name in ("query", "key", "value", "decay"):
            getattr(mamba, name).load_state_dict(getattr(ssd, name).state_dict())
    mamba.finish = lambda y, x, dtype: y
    ssd.finish = lambda y, x, dtype: y
    close(mamba(x), ssd(x))


def test_initial_values_are_those_of_the_authors():
    mixer = zoo.mixers.build("mamba2", width=64, heads=8)
    rates, steps = mixer.decay.log_rate.exp(), torch.nn.functional.softplus(mixer.decay.bias)
    assert 1 <= rates.min() < rates.max() <= 16
    assert 1e-3 <= steps.min() < steps.max() <= 0.1
    assert mixer.skip.eq(1).all()
    assert mixer.norm_weight.eq(1).all()
    assert mixer.value_dim * mixer.heads == 2 * 64
    assert mixer.conv.weight.abs().max() <= 0.5
    assert mixer.conv.weight.abs().max() > 0.45
    assert mixer.conv.bias.abs().max() <= 0.5


@pytest.mark.parametrize("groups", [1, 2])
def test_equals_mamba2_of_transformers(groups):
    sizes = {"hidden_size": 32, "num_heads": 4, "head_dim": 16, "state_size": 12, "n_groups": groups}
    layer = drawn_layer(Mamba2Mixer(Mamba2Config(**sizes, num_hidden_layers=1), 0))
    assert_same(layer, rebuilt(from_mamba2(layer)))


def test_equals_bamba():
    sizes = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 12, "mamba_n_groups": 2}
    layer = drawn_layer(BambaMixer(BambaConfig(hidden_size=32, **sizes, num_hidden_layers=1), 0))
    assert_same(layer, rebuilt(from_mamba2(layer)))
