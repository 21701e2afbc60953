"""RWKV-7: the recurrence of its file, the channel between layers, and the initial values of the authors' code."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import zoo
from tests.mixers.recurrences import assert_equals, close, draw, drawn, heads, through
from zoo.mixers.rwkv7 import rank_of
from zoo_kernels import linear_attention

RANKS = {"decay_rank": 3, "rate_rank": 4, "value_rank": 5, "gate_rank": 6}


def mixed(mixer, x):
    """The six mixtures of each token and the one before."""
    before = F.pad(x, (0, 0, 1, 0))[:, :-1]
    return {name: x + (before - x) * weight for name, weight in mixer.shifts.items()}


def oracle(mixer, x, first=None):
    parts, count = mixed(mixer, x), mixer.heads
    r, k, v = (
        x @ m.weight.T for x, m in ((parts["r"], mixer.receptance), (parts["k"], mixer.key), (parts["v"], mixer.value))
    )
    if first is not None:
        v = v + (first - v) * torch.sigmoid(through(mixer.move, parts["v"]) + mixer.move.bias)
    w = torch.tanh(parts["w"] @ mixer.decay.down.weight.T) @ mixer.decay.up.weight.T + mixer.decay.bias
    kept = torch.exp(-torch.exp(-torch.log1p(torch.exp(-w)) - 0.5))  # the authors' form of it
    a = torch.sigmoid(through(mixer.rate, parts["a"]) + mixer.rate.bias)
    g = torch.sigmoid(parts["g"] @ mixer.gate.down.weight.T) @ mixer.gate.up.weight.T
    u = heads(k * mixer.unit_scale, count)
    u = u / u.norm(dim=-1, keepdim=True)
    k = k * (1 + (a - 1) * mixer.key_rate)
    r, k, v, a, kept = (heads(part, count) for part in (r, k, v, a, kept))
    state, outputs = torch.zeros(*k[:, 0].shape, v.shape[-1], dtype=x.dtype), []
    for t in range(x.shape[1]):
        read = torch.einsum("bhd,bhde->bhe", u[:, t], state)  # before it decays
        state = kept[:, t, :, :, None] * state - (a * u)[:, t, :, :, None] * read[:, :, None]
        state = state + k[:, t, :, :, None] * v[:, t, :, None]
        outputs.append(torch.einsum("bhd,bhde->bhe", r[:, t], state))
    o = torch.stack(outputs, 1)
    mean, variance = o.mean(-1, keepdim=True), o.var(-1, unbiased=False, keepdim=True)
    o = (o - mean) / (variance + mixer.norm.eps).sqrt()
    o = o * heads(mixer.norm.weight[None, None], count) + heads(mixer.norm.bias[None, None], count)
    o = o + (r * k * mixer.bonus).sum(-1, keepdim=True) * v
    return through(mixer.out, o.flatten(2) * g)


def test_equals_the_recurrence_token_by_token():
    assert_equals(drawn("rwkv7", **RANKS), oracle)


def test_later_layers_move_to_the_values_of_the_first():
    first, later = drawn("rwkv7", depth=3, **RANKS), drawn("rwkv7", depth=3, layer=2, **RANKS)
    x, y, carry = draw(2, 40, 16), draw(2, 40, 16), {}
    close(first(x, carry=carry), oracle(first, x))
    values = mixed(first, x)["v"] @ first.value.weight.T
    close(later(y, carry=carry), oracle(later, y, values))


def test_a_later_layer_by_itself_is_the_first_of_its_kind():
    later, x = drawn("rwkv7", depth=3, layer=1, **RANKS), draw(2, 40, 16)
    close(later(x), oracle(later, x))
    close(later(x, carry={}), oracle(later, x))


def test_the_values_of_the_first_layer_come_through_caches_and_pieces():
    first, later = drawn("rwkv7", depth=3, **RANKS), drawn("rwkv7", depth=3, layer=2, **RANKS)
    x, y = draw(2, 40, 16), draw(2, 40, 16)
    want = oracle(later, y, mixed(first, x)["v"] @ first.value.weight.T)
    caches, got = [mixer.new_cache(2, dtype=torch.float64) for mixer in (first, later)], []
    with torch.no_grad():
        for a, b in zip(x.split((7, 1, 32), 1), y.split((7, 1, 32), 1), strict=True):
            carry = {}
            first(a, cache=caches[0], carry=carry)
            got.append(later(b, cache=caches[1], carry=carry))
    close(torch.cat(got, 1), want)


def test_without_a_rate_it_erases_nothing_and_is_gated_linear_attention():
    mixer, x = drawn("rwkv7", **RANKS), draw(2, 70, 16)
    with torch.no_grad():
        mixer.rate.down.weight.zero_()
        mixer.rate.bias.fill_(-800)  # a of 0
        mixer.bonus.zero_()
    parts = mixed(mixer, x)
    w = torch.tanh(parts["w"] @ mixer.decay.down.weight.T) @ mixer.decay.up.weight.T + mixer.decay.bias
    r = heads(parts["r"] @ mixer.receptance.weight.T, 2)
    k = heads(parts["k"] @ mixer.key.weight.T * (1 - mixer.key_rate), 2)
    v = heads(parts["v"] @ mixer.value.weight.T, 2)
    o, _ = linear_attention(r, k, v, heads(-(torch.tensor(-0.5).double().exp()) * torch.sigmoid(w), 2))
    o = F.group_norm(o.flatten(2).flatten(0, 1), 2, mixer.norm.weight, mixer.norm.bias, mixer.norm.eps).view(2, 70, 16)
    g = torch.sigmoid(parts["g"] @ mixer.gate.down.weight.T) @ mixer.gate.up.weight.T
    close(mixer(x), through(mixer.out, o * g))


def test_a_channel_forgets_at_most_to_0_545():
    decay = -0.6065306597126334 * drawn("rwkv7", **RANKS).decay(1e4 * draw(1, 9, 16)).sigmoid()
    assert decay.exp().min() >= 0.545


@pytest.mark.parametrize(
    ("width", "factor", "rank"),
    [(768, 2.5, 64), (768, 1.7, 32), (768, 5, 128), (2048, 2.5, 128), (64, 5, 32), (4096, 1.7, 96)],
)
def test_ranks_are_the_published_ones(width, factor, rank):
    assert rank_of(width, factor) == rank


@pytest.mark.parametrize(("layer", "depth"), [(0, 3), (1, 3), (2, 3)])
def test_initial_values_are_those_of_the_authors(layer, depth):
    """Written with their loops: RWKV-LM, RWKV_Tmix_x070."""
    width, size = 128, 64
    mixer = zoo.mixers.build("rwkv7", width=width, heads=2, depth=depth, layer=layer)
    ratio = layer / (depth - 1)
    line = [c / (width - 1) - 0.5 for c in range(width)]
    bend = [((c % size) - (size - 1) / 2) / ((size - 1) / 2) for c in range(width)]
    bend = [b * abs(b) for b in bend]
    want = {
        "decay.bias": [-6 + 6 * (c / (width - 1)) ** (1 + ratio**0.3) + 0.5 + 2.5 * bend[c] for c in range(width)],
        "rate.bias": [-0.19 + 0.3 * bend[c] + 0.4 * line[c] for c in range(width)],
        "unit_scale": [0.71 - 0.1 * line[c] for c in range(width)],
        "key_rate": [1.02] * width,
        "norm.weight": [((1 + layer) / depth) ** 0.7] * width,
        "norm.bias": [0.0] * width,
    }
    for name, power in {"r": 0.2, "w": 0.9, "k": 0.7, "v": 0.7, "a": 0.9, "g": 0.2}.items():
        want[f"shifts.{name}"] = [1 - (c / width) ** (power * (1 - layer / depth)) for c in range(width)]
    if layer:
        want["move.bias"] = [0.73 - 0.4 * line[c] for c in range(width)]
    state = mixer.state_dict()
    for name, numbers in want.items():
        torch.testing.assert_close(state[name], torch.tensor(numbers), rtol=1e-5, atol=1e-5, msg=name)
    assert mixer.bonus.eq(torch.tensor(-0.04)).all()
    assert mixer.norm.eps == pytest.approx(64e-5)
    assert (mixer.move is None) == (layer == 0)


def test_matrices_start_as_those_of_the_authors():
    mixer = zoo.mixers.build("rwkv7", width=128, heads=2, depth=3, layer=1)
    mixer.reset_parameters(0.02, 0.01)
    for matrix, gain in ((mixer.receptance, 1.0), (mixer.key, 0.1), (mixer.value, 1.0)):
        torch.testing.assert_close(matrix.weight @ matrix.weight.T, gain**2 * torch.eye(128), rtol=0, atol=1e-5)
    for low in (mixer.decay, mixer.rate, mixer.gate, mixer.move):
        assert not low.down.weight.any()
        rank = low.up.weight.shape[1]
        torch.testing.assert_close(low.up.weight.T @ low.up.weight, 0.01 * torch.eye(rank), rtol=0, atol=1e-5)
    assert not mixer.out.weight.any()
    assert not mixer(torch.randn(1, 9, 128)).any()
