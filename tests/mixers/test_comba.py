"""Comba: its recurrence, and the gated delta rule where it reads all of the key and corrects nothing."""

from __future__ import annotations

import torch

import zoo
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


def oracle(mixer, x):
    q, k, v = (heads(part, mixer.heads) for part in convolved(mixer, x))
    part = torch.sigmoid(mixer.read_part)[:, None]
    q, k = unit(q - mixer.correction[:, None] * part * k) / mixer.head_dim**0.5, unit(k)
    beta = torch.sigmoid(through(mixer.beta.projection, x))[..., None]
    kept = torch.exp(-mixer.decay.log_rate.exp() * softplus(through(mixer.decay.projection, x) + mixer.decay.bias))
    o = normed(recur(q, k, beta * v, kept, part * k, beta * k), mixer.norm.weight, 1e-5).flatten(2)
    return through(mixer.out, o * torch.sigmoid(through(mixer.gate.weight, x)))


def test_equals_the_recurrence_token_by_token():
    assert_equals(drawn("comba", head_dim=6, value_dim=5), oracle)


def test_all_of_the_key_and_no_correction_is_gated_deltanet():
    comba, gated = (
        drawn("comba", head_dim=6, value_dim=5),
        drawn("gated_deltanet", gate="sigmoid", head_dim=6, value_dim=5),
    )
    with torch.no_grad():
        comba.read_part.fill_(40)
        comba.correction.zero_()
    gated.load_state_dict({k: v for k, v in comba.state_dict().items() if k not in ("read_part", "correction")})
    x = draw(2, 70, 16)
    close(comba(x), gated(x))


def test_initial_values_are_those_of_the_authors():
    mixer = zoo.mixers.build("comba", width=64, heads=4, correction=0.02)
    assert mixer.read_part.eq(1).all()
    assert mixer.correction.eq(0.02).all()
    assert zoo.mixers.build("comba", width=64, heads=4).correction.eq(1).all()


def test_the_correction_may_be_a_whole_number():
    mixer = zoo.mixers.build("comba", width=64, heads=4, correction=1)
    assert mixer.correction.dtype == torch.float32
    assert mixer.correction.eq(1).all()
