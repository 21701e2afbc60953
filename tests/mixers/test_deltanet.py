"""DeltaNet: its recurrence, and what it is at the ends of its numbers."""

from __future__ import annotations

import pytest
import torch

from tests.mixers.recurrences import assert_equals, close, convolved, draw, drawn, heads, normed, recur, through, unit
from zoo_kernels import delta_attention, linear_attention


def oracle(mixer, x):
    q, k, v = (heads(part, mixer.heads) for part in convolved(mixer, x))
    beta = mixer.beta.most * torch.sigmoid(through(mixer.beta.projection, x))[..., None]
    q, k = unit(q) / mixer.head_dim**0.5, unit(k)
    o = normed(recur(q, k, beta * v, torch.ones(k.shape[:3]).double(), k, beta * k), mixer.norm.weight, 1e-5)
    return through(mixer.out, o.flatten(2))


@pytest.mark.parametrize("options", [{}, {"beta_max": 2.0, "head_dim": 6, "value_dim": 5}])
def test_equals_the_recurrence_token_by_token(options):
    assert_equals(drawn("deltanet", **options), oracle)


def test_the_strength_is_between_0_and_its_most():
    for most in (1.0, 2.0):
        beta = drawn("deltanet", beta_max=most).beta(100 * draw(1, 50, 16))
        assert beta.min() >= 0
        assert most - 1e-3 <= beta.max() <= most


def test_a_key_that_is_asked_for_gives_its_last_value():
    """At beta 1 a query that is the key reads what was just written, whatever the key held before."""
    k, v = unit(draw(2, 90, 3, 8)), draw(2, 90, 3, 5)
    k = k / k.norm(dim=-1, keepdim=True)
    close(delta_attention(k, k, v, beta=torch.ones(2, 90, 3).double())[0], v)


def test_orthonormal_keys_at_beta_1_are_linear_attention():
    q, v = draw(2, 16, 3, 16), draw(2, 16, 3, 5)
    k = torch.linalg.qr(draw(2, 3, 16, 16))[0].transpose(1, 2)
    want, _ = linear_attention(q, k, v)
    close(delta_attention(q, k, v, beta=torch.ones(2, 16, 3).double())[0], want)


def test_beta_2_without_a_write_keeps_the_norm_of_the_state():
    k = draw(1, 300, 2, 8)
    k, state = k / k.norm(dim=-1, keepdim=True), draw(1, 2, 8, 5)
    nothing, two = torch.zeros(1, 300, 2, 5).double(), torch.full((1, 300, 2), 2.0).double()
    _, after = delta_attention(k, k, nothing, beta=two, initial_state=state, return_state=True)
    close(after.norm(dim=(-2, -1)), state.norm(dim=(-2, -1)))
    assert (after - state).norm() > 0.1 * state.norm()


def test_beta_0_writes_nothing():
    q, k, v = draw(3, 1, 70, 2, 8)
    assert not delta_attention(q, k, v, beta=torch.zeros(1, 70, 2).double())[0].any()
