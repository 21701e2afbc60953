"""Mamba-3: the rule of the trapezoid token by token, positions, its identities and initial values."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

import zoo
from tests.mixers.recurrences import assert_equals, close, draw, drawn, heads, normed, recur, softplus, through

OPTIONS = [{}, {"kv_heads": 2, "head_dim": 4, "value_dim": 5}]


def turned(x, angle):
    """The first half of ``x (B, H, D)``, as complex numbers of neighbors, by ``angle (B, H, D / 4)``."""
    half = x.shape[-1] // 2
    numbers = torch.view_as_complex(x[..., :half].unflatten(-1, (-1, 2)).contiguous())
    numbers = numbers * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([torch.view_as_real(numbers).flatten(-2), x[..., half:]], -1)


def oracle(mixer, x):
    count = mixer.heads
    z, v = through(mixer.gate.weight, x), heads(through(mixer.value, x), count)
    q, k = (
        (normed(heads(through(matrix, x), mixer.kv_heads), norm.weight, norm.eps)).repeat_interleave(
            count // mixer.kv_heads, 2
        )
        + bias
        for matrix, norm, bias in (
            (mixer.query, mixer.query_norm, mixer.query_bias),
            (mixer.key, mixer.key_norm, mixer.key_bias),
        )
    )
    d, a, trap = (part for part in through(mixer.choices, x).chunk(3, -1))
    d, a, trap = softplus(d + mixer.step_bias), softplus(a).clamp(min=1e-4), torch.sigmoid(trap)
    velocity = math.pi * torch.tanh(through(mixer.angles, x))
    state = torch.zeros(x.shape[0], count, k.shape[-1], v.shape[-1], dtype=x.dtype)
    angle = torch.zeros(x.shape[0], count, mixer.angles.weight.shape[0], dtype=x.dtype)
    before = torch.zeros_like(state)  # what the token before wrote, undecayed
    outputs = []
    for t in range(x.shape[1]):
        angle = angle + velocity[:, t, None] * d[:, t, :, None]
        written = turned(k[:, t], angle)[..., None] * v[:, t, :, None]
        kept, step, part = (y[:, t, :, None, None] for y in (torch.exp(-a * d), d, trap))
        state = kept * state + (1 - part) * step * kept * before + part * step * written
        before = written
        outputs.append(torch.einsum("bhd,bhde->bhe", turned(q[:, t], angle), state) + mixer.skip[:, None] * v[:, t])
    return through(mixer.out, torch.stack(outputs, 1).flatten(2) * z * torch.sigmoid(z))


@pytest.mark.parametrize("options", OPTIONS)
def test_equals_the_recurrence_token_by_token(options):
    assert_equals(drawn("mamba3", heads=4, **({"head_dim": 8} | options)), oracle)


def test_an_open_trapezoid_without_angles_and_biases_is_the_core_of_mamba2():
    mixer, x = drawn("mamba3", head_dim=8), draw(2, 70, 16)
    with torch.no_grad():
        mixer.angles.weight.zero_()
        mixer.key_bias.zero_()
        mixer.query_bias.zero_()
        mixer.choices.weight[4:].zero_()
        mixer.choices.weight[4:, 0] = 1000
        x[..., 0] = 1  # l of 1 for every token
    q, k = (
        normed(heads(through(matrix, x), 1), norm.weight, norm.eps).repeat_interleave(2, 2)
        for matrix, norm in ((mixer.query, mixer.query_norm), (mixer.key, mixer.key_norm))
    )
    d, a, _ = through(mixer.choices, x).chunk(3, -1)
    d, a, v = softplus(d + mixer.step_bias), softplus(a), heads(through(mixer.value, x), 2)
    o = recur(q, d[..., None] * k, v, torch.exp(-a * d)) + mixer.skip[:, None] * v
    close(mixer(x), through(mixer.out, o.flatten(2) * F.silu(through(mixer.gate.weight, x))))


def test_only_distances_matter_so_that_it_may_turn_from_any_angle_on():
    mixer, x = drawn("mamba3", head_dim=8), draw(1, 40, 16)
    with torch.no_grad():
        plain, cache = mixer.new_cache(1, dtype=torch.float64), mixer.new_cache(1, dtype=torch.float64)
        cache.angle += 2.5
        close(mixer(x, cache=cache), mixer(x, cache=plain))
        assert (cache.angle - plain.angle).abs().max() > 0.1


def test_initial_values_are_those_of_the_authors():
    mixer = zoo.mixers.build("mamba3", width=64, heads=4)
    assert all(x.eq(1).all() for x in (mixer.key_bias, mixer.query_bias, mixer.skip))
    steps = F.softplus(mixer.step_bias)
    assert 1e-3 <= steps.min() < steps.max() <= 0.1
    assert mixer.value_dim * mixer.heads == 2 * 64
    assert mixer.angles.weight.shape[0] == mixer.head_dim // 4
    assert mixer.conv is None
    assert mixer.query_norm.eps == mixer.key_norm.eps == 1e-5
