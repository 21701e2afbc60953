"""Kimi Delta Attention: its recurrence with both decays, its identities and initial values."""

from __future__ import annotations

import pytest
import torch
from transformers.models.glm5_next.modeling_glm5_next import Glm5NextTextConfig, Glm5NextTextLinearAttention
from transformers.models.kimi_linear.modeling_kimi_linear import KimiLinearConfig, KimiLinearDeltaAttention

import zoo
from tests.mixers.published import assert_same, drawn_layer, from_kimi_linear, rebuilt
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
from zoo_kernels import delta_attention

SIZES = {
    "linear_num_heads": 2,
    "linear_head_dim": 12,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "layer_types": ["linear_attention", "full_attention"],
}
OPTIONS = [
    {},
    {"decay": "bounded", "beta_max": 2.0},
    {"value_heads": 4, "head_dim": 6, "value_dim": 5},
]


def log_decay_of(decay, x):
    """``(B, T, H, D)`` of either kind."""
    chosen = heads(through(decay.projection, x) + decay.bias, decay.heads)
    rate = decay.log_rate.exp()[:, None]
    return -rate * softplus(chosen) if decay.kind == "softplus" else -5 * torch.sigmoid(rate * chosen)


def oracle(mixer, x):
    groups = mixer.out_heads // mixer.heads
    q, k, v = convolved(mixer, x)
    q, k = (unit(heads(part, mixer.heads)).repeat_interleave(groups, 2) for part in (q, k))
    beta = mixer.beta.most * torch.sigmoid(through(mixer.beta.projection, x))[..., None]
    kept = log_decay_of(mixer.decay, x).exp().repeat_interleave(groups, 2)
    v = heads(v, mixer.out_heads)
    o = normed(recur(q / mixer.head_dim**0.5, k, beta * v, kept, k, beta * k), mixer.norm.weight, 1e-5)
    return through(mixer.out, o.flatten(2) * torch.sigmoid(through(mixer.gate.weight, x)))


@pytest.mark.parametrize("options", OPTIONS)
def test_equals_the_recurrence_token_by_token(options):
    assert_equals(drawn("kda", **options), oracle)


def test_channels_that_decay_alike_are_gated_deltanet():
    per_head = drawn("gated_deltanet", head_dim=8, value_dim=8, gate="none")
    per_channel = drawn("kda", gate="none")
    weights = {name: x for name, x in per_head.state_dict().items() if not name.startswith("decay")}
    per_channel.load_state_dict(weights, strict=False)
    with torch.no_grad():  # rank 8 holds the two rows of a head's decay, repeated for its channels
        down, up = per_channel.decay.projection.down.weight, per_channel.decay.projection.up.weight
        down.zero_()[:2] = per_head.decay.projection.weight
        up.zero_().view(2, 8, 8)[0, :, 0] = 1
        up.view(2, 8, 8)[1, :, 1] = 1
        per_channel.decay.bias.copy_(per_head.decay.bias.repeat_interleave(8))
        per_channel.decay.log_rate.copy_(per_head.decay.log_rate)
    x = draw(2, 70, 16)
    close(per_channel(x), per_head(x))


def test_a_gate_of_1_in_every_channel_is_no_decay():
    """fla#104: an exponent that was guarded made the two differ."""
    q, k, v = draw(3, 2, 70, 2, 8)
    k, beta = unit(k), torch.rand(2, 70, 2).double()
    plain, _ = delta_attention(q, k, v, beta=beta)
    close(delta_attention(q, k, v, torch.zeros(2, 70, 2, 8).double(), beta=beta)[0], plain)


def test_the_bounded_decay_stays_above_its_bound():
    decay = drawn("kda", decay="bounded").decay(1e4 * draw(1, 50, 16))
    assert decay.min() >= -5
    assert decay.max() <= 0
    assert decay.min() < -4.99


def test_initial_values_are_those_of_kimi_linear():
    mixer = zoo.mixers.build("kda", width=256, heads=4)
    rates, steps = mixer.decay.log_rate.exp(), torch.nn.functional.softplus(mixer.decay.bias)
    assert 1 <= rates.min() < rates.max() <= 16
    assert 1e-3 <= steps.min() < 1.1e-3
    assert 0.09 < steps.max() <= 0.1 + 1e-6
    torch.testing.assert_close(steps.log().mean().exp(), torch.tensor(0.01), rtol=1e-3, atol=0)


def test_the_bounded_decay_starts_at_rates_of_1_and_slow():
    """As GLM-5.3's layer in transformers; a bias of 0 would forget nine tenths with every token."""
    decay = zoo.mixers.build("kda", width=256, heads=4, decay="bounded").decay
    assert not decay.log_rate.any()
    kept = decay(torch.zeros(1, 1, 256)).exp()
    assert 0.63 < kept.min() < 0.64
    assert 0.99 < kept.max() < 1


def test_equals_kimi_linear():
    layer = drawn_layer(KimiLinearDeltaAttention(KimiLinearConfig(**SIZES), 0))
    assert_same(layer, rebuilt(from_kimi_linear(layer)))


def test_equals_glm_5_whose_decay_is_bounded():
    """FlashKDA#3: a checkpoint of one decay that runs with the other repeats itself."""
    layer = drawn_layer(Glm5NextTextLinearAttention(Glm5NextTextConfig(**SIZES), 0))
    assert layer.forget_gate.safe_gate_lower_bound == -5
    assert_same(layer, rebuilt(from_kimi_linear(layer, "bounded")))
