"""Retention: its decays, and the formula of the paper."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import zoo
from tests.mixers.golden import assert_golden, golden_mixer
from zoo.mixers.parts.decays import retention_log_decay

LOG_GAMMA = [  # log(1 - 2^-5), ... in fp64
    -0.031748698314580298,
    -0.015748356968139112,
    -0.007843177461025893,
    -0.00391389932113633,
    -0.0019550348358033505,
]
OUTPUTS = [
    [-1.793312408318, 0.739001169558, -0.388851553998, 0.553892149621,
     -1.146900361992, 1.60519040883, 0.81139817067, -0.75179935912],
    [-0.472649412472, -0.290682215491, 0.742997129793, -0.027564589421,
     -0.143521273413, -0.240789662873, -0.447262729006, 0.349817297644],
]  # fmt: skip


def build(**options):
    torch.manual_seed(0)
    return zoo.mixers.build("retention", **({"width": 32, "heads": 4} | options)).double()


def draw(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def test_decays_are_those_of_the_paper():
    torch.testing.assert_close(retention_log_decay(5).double(), torch.tensor(LOG_GAMMA).double(), rtol=2e-7, atol=0)


def test_decays_of_many_heads_do_not_round_to_none():
    """1 - 2^-30 is 1 in fp32: the logarithm is taken without it."""
    late = retention_log_decay(64)[25:].double()
    torch.testing.assert_close(late, -(2.0 ** -torch.arange(30, 69).double()), rtol=1e-6, atol=0)


def test_outputs_equal_those_computed_elsewhere():
    assert_golden(golden_mixer("retention"), OUTPUTS, 1e-6)


@pytest.mark.parametrize("rope_theta", [None, 100.0])
def test_equals_decayed_products_of_pairs_turned_by_the_distance(rope_theta):
    mixer, x = build(rope_theta=rope_theta), draw(2, 70, 32)
    q, k, v = (m(x).view(2, 70, 4, 8) for m in (mixer.query, mixer.key, mixer.value))
    q, k = (torch.view_as_complex(y.unflatten(-1, (4, 2)).contiguous()) for y in (q, k))
    distance = (torch.arange(70)[:, None] - torch.arange(70)).double()
    frequency = torch.zeros(4) if rope_theta is None else rope_theta ** (-torch.arange(4).double() / 4)
    turn = torch.exp(1j * distance[..., None] * frequency)
    decay = ((1 - 2.0 ** -torch.arange(5, 9).double())[:, None, None] ** distance).tril()
    scores = torch.einsum("bthd,bjhd,tjd->bhtj", q, k.conj(), turn).real / 8**0.5
    y = torch.einsum("bhtj,bjhe->bthe", scores * decay, v)
    y = y / (y.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    want = mixer.out(F.silu(x @ mixer.gate.weight.weight.T) * y.flatten(2))
    torch.testing.assert_close(mixer(x), want, rtol=1e-5, atol=1e-5)  # the decays are fp32 by contract


def test_every_layer_decays_alike():
    first, last, x = build(depth=3, layer=0), build(depth=3, layer=2), draw(1, 40, 32)
    assert torch.equal(first(x), last(x))


def test_the_size_of_one_head_does_not_touch_another():
    mixer, x = build(gate="none"), draw(1, 20, 32)
    mixer.out = torch.nn.Identity()
    before = mixer(x)
    with torch.no_grad():
        mixer.value.weight[:8] *= 100
    after = mixer(x)
    assert torch.equal(after[..., 8:], before[..., 8:])
    torch.testing.assert_close(
        after.view(1, 20, 4, 8).square().mean(-1), torch.ones(1, 20, 4).double(), rtol=1e-2, atol=0
    )


@pytest.mark.parametrize("norm", ["none", "layer"])
def test_it_needs_a_norm(norm):
    with pytest.raises(ValueError, match=f"norm='{norm}': expected one of rms, srms"):
        build(norm=norm)
