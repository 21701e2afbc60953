"""What the weights of a mixer sum to, and what it is in the limits of its options."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.conformance.cases import HEADS, WIDTH, assert_equal, draw, every_mixer, make
from tests.tiers import named
from zoo.mixers.parts.heads import HeadMixer

LENGTH = 70


@every_mixer
@pytest.mark.parametrize("packed", named({"plain": False, "packed": True}, "packed"))
def test_constant_values_stay_constant_exactly_where_weights_sum_to_one(name, options, packed):
    """``normalized`` says so, and neither way can it be wrong. Without heads, equal inputs have equal values."""
    mixer, x = make(name, options), draw(2, LENGTH)
    documents = (torch.arange(LENGTH) // 30).expand(2, LENGTH) if packed else None
    if not isinstance(mixer, HeadMixer):
        y = mixer(x[:, :1].expand(-1, LENGTH, -1), documents=documents)
        assert torch.allclose(y, y[:, :1].expand_as(y), 1e-5, 1e-5) == mixer.normalized
        return
    constant, mixed = torch.randn(mixer.value.weight.shape[0], dtype=x.dtype), []
    mixer.value.register_forward_hook(lambda _, __, v: constant.expand_as(v))
    mix = mixer.mix
    mixer.mix = lambda q, k, v, call: mixed.append((v, mix(q, k, v, call))) or mixed[-1][1]
    mixer(x, documents=documents)
    values, y = mixed[0]
    values = values[:, :, -y.shape[2] :]  # of several that a token writes, the last
    values = values.repeat_interleave(y.shape[2] // values.shape[2], 2)
    if mixer.normalized:
        assert_equal(y, values, 1e-5)  # denominators are kept away from zero by 1e-6
    else:
        assert not torch.allclose(y, values, 1e-3, 1e-3)


LIMITS: list[tuple[str, dict[str, Any], str, dict[str, Any]]] = [
    ("gqa", {"kv_heads": HEADS}, "softmax", {}),
    ("mqa", {}, "gqa", {"kv_heads": 1}),
    ("window", {"window": LENGTH, "sink_tokens": 0}, "softmax", {}),
    ("window", {"window": 1, "sink_tokens": LENGTH}, "softmax", {}),
    ("dilated", {"window": LENGTH, "dilation": 1}, "softmax", {}),
    ("dilated", {"kind": "atrous", "dilation": 1}, "softmax", {}),
    ("dilated", {"window": 5, "dilation": 1}, "window", {"window": 5, "sink_tokens": 0}),
    ("longformer", {"window": LENGTH, "global_tokens": 0}, "softmax", {}),
    ("longformer", {"window": 5, "global_tokens": 3}, "window", {"window": 5, "sink_tokens": 3}),
    ("longformer", {"window": 1, "global_tokens": 0, "global_every": 1}, "softmax", {}),
    ("bigbird", {"block": 16, "window_blocks": 5}, "softmax", {}),
    ("bigbird", {"block": 16, "window_blocks": 1, "random_blocks": 5}, "softmax", {}),
    ("bigbird", {"block": 16, "window_blocks": 1, "global_blocks": 5, "random_blocks": 0}, "softmax", {}),
    ("topk", {"block": 16, "top_k": 5, "score_weight": 0.0}, "softmax", {}),
    ("topk", {"unit": "token", "top_k": LENGTH, "score_weight": 0.0}, "softmax", {}),
    ("learned_sparse", {"block": 16, "top_k": 9, "reach": 10}, "softmax", {}),
    ("adaptive", {"full_below": 128}, "softmax", {}),
    ("window_linear", {"mode": "heads", "local_heads": HEADS, "window": 9}, "window", {"window": 9, "sink_tokens": 0}),
    ("window_linear", {"mode": "heads", "local_heads": 0}, "linear", {}),
    ("window_linear", {"mode": "shared", "window": 0}, "window_linear", {"local_heads": 0, "feature_map": "taylor"}),
    ("window_linear", {"mode": "shared", "window": LENGTH}, "softmax", {}),
    ("sparse_linear", {"mode": "heads", "local_heads": HEADS, "seed": 3}, "bigbird", {"seed": 3}),
    ("sparse_linear", {"mode": "heads", "local_heads": 0}, "linear", {}),
]


@pytest.mark.parametrize(("name", "options", "limit", "of_limit"), LIMITS, ids=str)
def test_a_limit_is_the_simpler_mixer(name, options, limit, of_limit):
    """The same weights give the same output and the same gradient of the input."""
    mixer, simpler = make(name, options), make(limit, of_limit)
    missing, _ = simpler.load_state_dict(mixer.state_dict(), strict=False)
    assert not missing, f"{limit} has what {name} lacks: {missing}"
    x = draw(2, LENGTH).requires_grad_()
    for documents in (None, (torch.arange(LENGTH) // 30).expand(2, LENGTH)):
        got, want = mixer(x, documents=documents), simpler(x, documents=documents)
        assert_equal(got, want, 1e-9)
        weight = torch.randn(2, LENGTH, WIDTH, dtype=x.dtype)
        assert_equal(*(torch.autograd.grad((y * weight).sum(), x)[0] for y in (got, want)), 1e-8)
