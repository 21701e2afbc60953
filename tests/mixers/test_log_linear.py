"""Log-linear attention: the sum over blocks that double, and the recurrence that it is when all weigh alike."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import zoo
from tests.mixers.recurrences import assert_equals, close, convolved, draw, drawn, heads, normed, softplus, through


def level_of(t, j):
    """Level of token j for token t: 0 for itself, else the blocks of t, largest first, that the binary digits name."""
    if j == t:
        return 0
    start = 0
    for digit in reversed(range(t.bit_length())):
        if t >> digit & 1:
            if j < start + (1 << digit):
                return digit + 1
            start += 1 << digit
    raise AssertionError(f"{j} is behind {t}")


@pytest.mark.parametrize("t", [0, 1, 6, 7, 8, 21])
def test_levels_are_blocks_that_grow_towards_the_past(t):
    levels = [level_of(t, j) for j in range(t + 1)]
    assert levels == sorted(levels, reverse=True)
    sizes = {level: levels.count(level) for level in levels}
    assert sizes == {0: 1} | {n + 1: 2**n for n in range(t.bit_length()) if t >> n & 1}


def oracle(mixer, x):
    length, last = x.shape[1], mixer.levels - 1
    q, k, v = (heads(part, mixer.heads) for part in convolved(mixer, x))
    step = softplus(through(mixer.decay.projection, x) + mixer.decay.bias)
    total = (-mixer.decay.log_rate.exp() * step).cumsum(1)
    weights = softplus(mixer.level_scale * heads(through(mixer.level_weight, x), mixer.heads))
    o = torch.zeros_like(v)
    for t in range(length):
        for j in range(t + 1):
            weight = weights[:, t, :, min(level_of(t, j), last)] * (total[:, t] - total[:, j]).exp() * step[:, j]
            o[:, t] += (weight * (q[:, t] * k[:, j]).sum(-1))[..., None] * v[:, j]
    gate = through(mixer.gate.weight, x)
    o = normed(o.flatten(2), mixer.norm.weight, mixer.norm.eps)
    return through(mixer.out, o * gate * torch.sigmoid(gate))


@pytest.mark.parametrize("levels", [15, 3, 1])
def test_equals_the_sum_over_all_pairs(levels):
    assert_equals(drawn("log_linear", levels=levels, head_dim=6, value_dim=5), oracle)


def test_levels_that_all_weigh_1_are_ssd():
    mixer, ssd, x = drawn("log_linear", conv=0, norm_eps=1e-6), drawn("ssd"), draw(2, 70, 16)
    weights = mixer.state_dict()
    ssd.load_state_dict({name: x for name, x in weights.items() if not name.startswith("level")})
    assert (mixer(x) - ssd(x)).abs().max() > 0.01
    with torch.no_grad():
        mixer.level_weight.weight.zero_()
        mixer.level_weight.weight[:, 0] = 1
        mixer.level_scale.fill_(torch.log(torch.expm1(torch.tensor(1.0).double())))
        for name in ("query", "key", "value", "gate.weight", "decay.projection"):  # they do not see that channel
            for one in (mixer, ssd):
                one.get_submodule(name).weight[:, 0] = 0
    x[..., 0] = 1
    close(mixer(x), ssd(x))


def test_a_cache_holds_a_state_for_each_binary_digit():
    mixer, cache = drawn("log_linear"), drawn("log_linear").new_cache(1, dtype=torch.float64)
    with torch.no_grad():
        for token in draw(1, 21, 16).split(1, 1):
            mixer(token, cache=cache)
    held = cache.states.abs().amax((0, 2, 3, 4)) > 0
    assert held.tolist() == [bool(21 >> n & 1) for n in range(len(held))]


def test_initial_values_are_those_of_the_authors():
    mixer = zoo.mixers.build("log_linear", width=64, heads=4)
    assert mixer.level_scale.eq(1).all()
    assert mixer.level_scale.shape == (4, 15)
    assert F.softplus(mixer.decay.bias).max() <= 0.1
    assert mixer.norm.eps == 1e-5
