"""Gated linear attention: its recurrence, and what it is when the channels of a head decay alike."""

from __future__ import annotations

import torch
import torch.nn.functional as F

import zoo
from tests.mixers.recurrences import assert_equals, close, draw, drawn, heads, normed, recur, through
from zoo.mixers.parts.call import Call


def oracle(mixer, x):
    q, k, v = (heads(through(matrix, x), mixer.heads) for matrix in (mixer.query, mixer.key, mixer.value))
    kept = torch.sigmoid(heads(through(mixer.decay, x) + mixer.decay.bias, mixer.heads)) ** (1 / 16)
    o = normed(recur(q / mixer.head_dim**0.5, k, v, kept), mixer.norm.weight, 1e-5).flatten(2)
    gate = through(mixer.gate.weight, x)
    return through(mixer.out, o * gate * torch.sigmoid(gate))


def test_equals_the_recurrence_token_by_token():
    assert_equals(drawn("gla", decay_rank=3), oracle)


def test_one_decay_for_the_channels_of_a_head_is_ssd():
    """But for what their files say: SiLU of queries, keys and values, and the scale."""
    gla, ssd, x = drawn("gla", head_dim=8, decay_rank=2), drawn("ssd", decay="sigmoid"), draw(2, 70, 16)
    with torch.no_grad():
        gla.decay.down.weight.copy_(ssd.decay.projection.weight)
        gla.decay.up.weight.copy_(torch.eye(2).repeat_interleave(8, 0))
        gla.decay.bias.copy_(ssd.decay.bias.repeat_interleave(8))
    parts, call = draw(3, 2, 70, 2, 8), Call(x, torch.arange(70)[None], None, None, None, None)
    close(gla.mix(*F.silu(parts), call) * 8**0.5, ssd.mix(*parts, call))


def test_without_decay_it_is_linear_attention():
    gla, x = drawn("gla"), draw(2, 70, 16)
    with torch.no_grad():
        gla.decay.up.weight.zero_()
        gla.decay.bias.fill_(800)
    q, k, v = (heads(through(matrix, x), 2) for matrix in (gla.query, gla.key, gla.value))
    o = torch.einsum("bhtj,bjhe->bthe", torch.einsum("bthd,bjhd->bhtj", q, k).tril() / gla.head_dim**0.5, v)
    gate = through(gla.gate.weight, x)
    want = through(gla.out, normed(o, gla.norm.weight, 1e-5).flatten(2) * gate * torch.sigmoid(gate))
    close(gla(x), want)


def test_sizes_and_initial_values_are_those_of_the_paper():
    mixer = zoo.mixers.build("gla", width=256, heads=4)
    assert (mixer.head_dim, mixer.value_dim) == (32, 64)
    assert mixer.decay.down.weight.shape == (16, 256)
    assert not mixer.decay.bias.any()
    assert mixer.conv is None
