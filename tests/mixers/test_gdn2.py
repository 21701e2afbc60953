"""Gated DeltaNet-2: its recurrence, and Kimi Delta Attention where its gates are one number."""

from __future__ import annotations

import pytest
import torch

from tests.mixers.recurrences import assert_equals, close, convolved, draw, drawn, heads, normed, recur, through, unit
from tests.mixers.test_kda import log_decay_of


def oracle(mixer, x):
    q, k, v = (heads(part, mixer.heads) for part in convolved(mixer, x))
    erased = mixer.erased.most * torch.sigmoid(heads(through(mixer.erased.projection, x), mixer.heads))
    written = torch.sigmoid(heads(through(mixer.written.projection, x), mixer.heads))
    q, k = unit(q) / mixer.head_dim**0.5, unit(k)
    o = recur(q, k, written * v, log_decay_of(mixer.decay, x).exp(), erased * k, k)
    o = normed(o, mixer.norm.weight, 1e-5).flatten(2)
    return through(mixer.out, o * torch.sigmoid(through(mixer.gate.weight, x)))


@pytest.mark.parametrize("options", [{}, {"decay": "bounded", "beta_max": 2.0, "head_dim": 6, "value_dim": 5}])
def test_equals_the_recurrence_token_by_token(options):
    assert_equals(drawn("gdn2", **options), oracle)


def test_gates_that_are_one_number_are_kimi_delta_attention():
    one, two = drawn("kda"), drawn("gdn2")
    weights = one.state_dict()
    beta = weights.pop("beta.projection.weight").repeat_interleave(8, 0)
    two.load_state_dict(weights | {"erased.projection.weight": beta, "written.projection.weight": beta})
    x = draw(2, 70, 16)
    close(two(x), one(x))
