"""Random feature attention: the formula, its limits and its gate."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

import zoo
from tests.mixers.golden import assert_golden, golden_mixer
from zoo.mixers.parts.call import Call
from zoo.mixers.parts.positions import rotate
from zoo_kernels import linear_attention

OUTPUTS = {  # by decay, of 6 features at a temperature of 1.5
    "none": [
        [1.72489981425, -2.01201391571, 2.04540004566, 0.0686685398625,
         -0.737976394376, -3.06092864946, -0.635481009794, 2.32509841413],
        [0.970917422522, -1.00451669867, 0.935758157232, -0.276110462754,
         -0.37047551439, -1.59505010007, 0.0117397931873, 1.16652955065],
    ],
    "gate": [
        [1.51039945224, -1.69840965899, 1.76461772391, 0.264109479614,
         -0.635072786791, -2.82460419107, -0.810747652122, 2.12324568966],
        [0.72867313627, -1.35048866414, 1.37075500925, -0.329897726364,
         -0.519618916383, -0.687961694992, -0.139457651829, 1.21829485957],
    ],
}  # fmt: skip


def build(dtype=torch.float64, **options):
    torch.manual_seed(0)
    given = {"width": 32, "heads": 4, "depth": 3} | options
    return zoo.mixers.build("rfa", **given).to(dtype)


def qkv(length=40, heads=4, width=8, dtype=torch.float64):
    return [torch.randn(1, length, heads, width, dtype=dtype) for _ in range(3)]


def call(x, length):
    return Call(x, torch.arange(length)[None], None, None, None, None)


def mix(mixer, q, k, v):
    return mixer.mix(q, k, v, call(torch.zeros(1, q.shape[1], mixer.width, dtype=q.dtype), q.shape[1]))


def unit(x):
    return x / (x.square().sum(-1, keepdim=True) + 1e-6 * x.shape[-1]).sqrt()


def naive(mixer, q, k, v, decay=None):
    """Weights of all pairs as means of cosines of differences; ``decay (B, T, H)``: the gate g of each token."""
    weight = mixer.projection.weight().double() * mixer.sigma / mixer.tau
    difference = unit(q)[:, :, None] - unit(k)[:, None]
    kernel = torch.einsum("bijhd,hfd->bhijf", difference, weight).cos().mean(-1)
    if decay is not None:
        total = decay.log().cumsum(1).transpose(1, 2)
        kernel = kernel * (total[..., None] - total[..., None, :]).tril().exp() * (1 - decay).mT[..., None, :]
    kernel = kernel.tril()
    den = kernel.sum(-1, keepdim=True)
    den = torch.where(den < 0, -1.0, 1.0) * den.abs().clamp(min=1e-6)
    return torch.einsum("bhij,bjhd->bihd", kernel / den, v)


@pytest.mark.parametrize("rope_theta", [None, 100.0])
@pytest.mark.parametrize("decay", ["none", "gate"])
@pytest.mark.parametrize("tau", [1.0, 1.7])
def test_the_layer_is_its_formula(rope_theta, decay, tau):
    mixer, x = build(rope_theta=rope_theta, decay=decay, tau=tau, features=12), torch.randn(2, 50, 32).double()
    with torch.no_grad():
        mixer.sigma.uniform_(0.5, 1.5)
        q, k, v = (p(x).unflatten(-1, (4, 8)) for p in (mixer.query, mixer.key, mixer.value))
        if rope_theta:
            q, k = (rotate(y, torch.arange(50)[None], rope_theta) for y in (q, k))
        gate = None
        if decay == "gate":
            gate = torch.sigmoid(x @ mixer.forget.projection.weight.T + mixer.forget.bias)
        want = F.linear(naive(mixer, q, k, v, gate).flatten(-2), mixer.out.weight)
        torch.testing.assert_close(mixer(x), want, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("decay", ["none", "gate"])
@pytest.mark.parametrize("tau", [0.3, 1.0])
def test_the_first_token_gets_its_value(decay, tau):
    """Whatever the sign and size of its normalizer; a bound of 1, as in the published code, would shrink it."""
    mixer, (q, k, v) = build(decay=decay, tau=tau), qkv(1, dtype=torch.float64)
    torch.testing.assert_close(mix(mixer, q, k, v), v, rtol=1e-12, atol=1e-12)
    single, (q, k, v) = build(torch.float32, decay=decay, tau=tau), qkv(1, dtype=torch.float32)
    torch.testing.assert_close(mix(single, q, k, v), v, rtol=1e-5, atol=1e-6)


def test_no_token_is_shrunk():
    """Constant values come back from every position, from the first one on."""
    mixer, (q, k, v) = build(), qkv()
    torch.testing.assert_close(mix(mixer, q, k, torch.full_like(v, 3.0)), torch.full_like(v, 3.0))


def test_a_high_temperature_gives_the_running_mean():
    mixer, (q, k, v) = build(tau=1e6), qkv()
    want = v.cumsum(1) / torch.arange(1, 41)[None, :, None, None]
    torch.testing.assert_close(mix(mixer, q, k, v), want, rtol=1e-9, atol=1e-9)


def test_negative_weights_and_normalizers_keep_their_sign():
    mixer, (q, k, v) = build(tau=0.2, features=8), qkv()
    weight = mixer.projection.weight().double() / 0.2
    kernel = torch.einsum("bijhd,hfd->bhijf", unit(q)[:, :, None] - unit(k)[:, None], weight).cos().mean(-1).tril()
    assert (kernel.sum(-1) < 0).any()
    torch.testing.assert_close(mix(mixer, q, k, v), naive(mixer, q, k, v), rtol=1e-7, atol=1e-8)


def test_the_error_to_softmax_attention_falls_as_the_root_of_the_features():
    q, k, v = qkv(96, 8, 64)
    a, b = ((64**0.25) * F.normalize(x, dim=-1).transpose(1, 2) for x in (q, k))
    want = F.scaled_dot_product_attention(a, b, v.transpose(1, 2), is_causal=True).transpose(1, 2)
    errors = []
    for features in (64, 256, 1024, 4096):
        with torch.no_grad():
            got = mix(build(width=512, heads=8, features=features), q, k, v)
        errors.append(((got - want).norm() / want.norm()).item())
    slopes = [math.log(y / x) / math.log(4) for x, y in itertools.pairwise(errors)]
    assert all(abs(slope + 0.5) < 0.15 for slope in slopes), (errors, slopes)
    assert abs(sum(slopes) / 3 + 0.5) < 0.05, (errors, slopes)
    assert errors[-1] < 0.03


def test_lengths_of_queries_and_keys_do_not_matter():
    mixer, (q, k, v) = build(), qkv()
    torch.testing.assert_close(mix(mixer, 50 * q, 300 * k, v), mix(mixer, q, k, v), rtol=1e-4, atol=1e-5)


def test_a_constant_gate_is_a_decay_per_head_with_smaller_writes():
    mixer, (q, k, v) = build(decay="gate"), qkv()
    g = torch.tensor([0.1, 0.5, 0.9, 0.99]).double()
    with torch.no_grad():
        mixer.forget.bias.copy_((g / (1 - g)).log())
        phi = [mixer._phi(x) for x in (q, k)]
        want, _ = linear_attention(phi[0], phi[1] * (1 - g)[:, None], v, g.log(), normalize=True)
        torch.testing.assert_close(mix(mixer, q, k, v), want)


def test_a_gate_that_never_forgets_at_all_is_plain_attention():
    """g -> 1: writes shrink alike and cancel."""
    mixer, plain, (q, k, v) = build(decay="gate"), build(), qkv()
    with torch.no_grad():
        mixer.forget.bias.fill_(9.0)
    length = torch.arange(40)[None, :, None, None]
    assert ((mix(mixer, q, k, v) - mix(plain, q, k, v)).abs() < 1e-3 * (1 + length)).all()


def test_gates_start_with_memories_from_short_to_long():
    mixer = build(decay="gate", width=64, heads=16)
    memory = 1 / torch.sigmoid(-mixer.forget.bias)
    assert (memory.diff() > 0).all()
    assert 8 < memory[0] < 12
    assert 340 < memory[-1] < 512


def test_sigma_is_learned_per_head_and_dimension():
    mixer, x = build(), torch.randn(2, 20, 32).double()
    mixer(x).square().sum().backward()
    assert mixer.sigma.grad.shape == (4, 1, 8)
    assert mixer.sigma.grad.ne(0).all()


def test_features_change_in_training_at_the_scheduled_step_and_survive_a_checkpoint():
    mixer, other, x = build(redraw=5), build(redraw=5), torch.randn(1, 20, 32).double()
    first = mixer(x)
    mixer.start_step(4)
    assert torch.equal(mixer(x), first)
    mixer.eval().start_step(5)
    assert torch.equal(mixer(x), first)
    mixer.train().start_step(5)
    assert not torch.allclose(mixer(x), first)
    other.load_state_dict(mixer.state_dict())
    assert torch.equal(other(x), mixer(x))


@pytest.mark.parametrize(
    ("change", "message"),
    [({"tau": 0.0}, "tau=0.0: expected"), ({"decay": "exp"}, "decay='exp': expected one of none, gate")],
)
def test_wrong_values_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        build(**change)


@pytest.mark.parametrize("name", OUTPUTS)
def test_outputs_equal_those_computed_elsewhere(name):
    """With weights of norms and biases of gates that start in fp32."""
    assert_golden(golden_mixer("rfa", features=6, decay=name, tau=1.5), OUTPUTS[name], 1e-6)
