"""Gated DeltaNet: its recurrence with products and grouped values, its identities and initial values."""

from __future__ import annotations

import pytest
import torch
from transformers.models.olmo_hybrid.modeling_olmo_hybrid import OlmoHybridConfig, OlmoHybridGatedDeltaNet
from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5GatedDeltaNet, Qwen3_5TextConfig
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextConfig, Qwen3NextGatedDeltaNet

import zoo
from tests.mixers.published import assert_same, drawn_layer, from_olmo_hybrid, from_qwen3_5, from_qwen3_next, rebuilt
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
    unit,
)

SIZES = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 12,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "layer_types": ["linear_attention", "full_attention"],
}
OPTIONS = [
    {},
    {"value_heads": 4, "head_dim": 6, "value_dim": 5, "beta_max": 2.0},
    {"products": 3, "value_heads": 4, "head_dim": 6, "value_dim": 5},
]


def oracle(mixer, x):
    n, groups = mixer.products, mixer.out_heads // mixer.heads
    q, k, v = convolved(mixer, x)
    q = (unit(heads(q, mixer.heads)) / mixer.head_dim**0.5).repeat_interleave(groups, 2)
    beta = mixer.beta.most * torch.sigmoid(through(mixer.beta.projection, x))
    chosen = through(mixer.decay.projection, x) + mixer.decay.bias
    kept = torch.exp(-mixer.decay.log_rate.exp() * softplus(chosen))
    steps = []  # of all products, one after another
    for part, count in ((k, mixer.heads), (v, mixer.out_heads), (beta, mixer.out_heads)):
        steps.append(part.unflatten(-1, (n, count, -1)).flatten(1, 2))
    k, v, beta = unit(steps[0]).repeat_interleave(groups, 2), steps[1], steps[2]
    kept = torch.stack([kept] + [torch.ones_like(kept)] * (n - 1), 2).flatten(1, 2)
    o = recur(q.repeat_interleave(n, 1), k, beta * v, kept, k, beta * k)[:, n - 1 :: n]
    o = normed(o, mixer.norm.weight, mixer.norm.eps).flatten(2)
    gate = through(mixer.gate.weight, x)
    return through(mixer.out, o * gate * torch.sigmoid(gate))


@pytest.mark.parametrize("options", OPTIONS)
def test_equals_the_recurrence_token_by_token(options):
    assert_equals(drawn("gated_deltanet", **options), oracle)


def test_a_gate_of_1_is_deltanet():
    """fla#104: an exponent that was guarded made the two differ."""
    sizes = {"head_dim": 8, "value_dim": 6}
    gated, plain = drawn("gated_deltanet", **sizes), drawn("deltanet", gate="silu", **sizes)
    missing = plain.load_state_dict(gated.state_dict(), strict=False)
    assert missing.missing_keys == []
    assert {name.partition(".")[0] for name in missing.unexpected_keys} == {"decay"}
    x = draw(2, 70, 16)
    assert (gated(x) - plain(x)).abs().max() > 0.01
    with torch.no_grad():
        gated.decay.log_rate.fill_(-1000)
    close(gated(x), plain(x))


def test_products_whose_later_steps_do_nothing_are_the_plain_rule():
    one, two = (drawn("gated_deltanet", products=n, conv=0) for n in (1, 2))
    weights = one.state_dict()
    for name in ("key.weight", "value.weight", "beta.projection.weight"):
        rows = weights[name].shape[0]
        weights[name] = torch.cat([weights[name], two.state_dict()[name][rows:]])
    two.load_state_dict(weights)
    with torch.no_grad():  # the second step writes nothing: no key
        two.key.weight[two.key.weight.shape[0] // 2 :] = 0
    x = draw(2, 70, 16)
    close(two(x), one(x))


def test_initial_values_are_those_of_the_paper():
    mixer = zoo.mixers.build("gated_deltanet", width=64, heads=8)
    rates = mixer.decay.log_rate.exp()
    assert rates.min() >= 0.01
    assert rates.max() <= 16
    torch.testing.assert_close(rates.mean(), torch.tensor(8.0), rtol=0.01, atol=0)
    steps = torch.nn.functional.softplus(mixer.decay.bias)
    assert steps.min() >= 1e-3
    assert steps.max() <= 0.1
    torch.testing.assert_close(steps.log().mean().exp(), torch.tensor(0.01), rtol=1e-3, atol=0)


def test_the_published_sizes_have_six_times_the_square_of_the_width():
    mixer = zoo.mixers.build("gated_deltanet", width=256, heads=2)
    assert (mixer.head_dim, mixer.value_dim) == (96, 192)
    matrices = (mixer.query, mixer.key, mixer.value, mixer.gate.weight, mixer.out)
    assert sum(matrix.weight.numel() for matrix in matrices) == 6 * 256**2


def test_equals_qwen3_next():
    config = Qwen3NextConfig(**SIZES)
    layer = drawn_layer(Qwen3NextGatedDeltaNet(config, 0))
    assert_same(layer, rebuilt(from_qwen3_next(layer)))


def test_equals_qwen3_5():
    layer = drawn_layer(Qwen3_5GatedDeltaNet(Qwen3_5TextConfig(**SIZES), 0))
    assert_same(layer, rebuilt(from_qwen3_5(layer)))


@pytest.mark.parametrize("negative", [True, False])
def test_equals_olmo_hybrid(negative):
    config = OlmoHybridConfig(**SIZES | {"linear_num_value_heads": 2, "linear_allow_neg_eigval": negative})
    layer = drawn_layer(OlmoHybridGatedDeltaNet(config, 0))
    mixer = rebuilt(from_olmo_hybrid(layer))
    assert (mixer.beta.most, mixer.norm.eps) == (2 if negative else 1, 1e-5)
    assert_same(layer, mixer)
