"""State space duality: decays that tokens choose, their initial values and gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import zoo
from tests.mixers.golden import assert_golden, golden_mixer
from zoo.mixers.parts.decays import StepDecay
from zoo_kernels import linear_attention

RATES = [2.875, 6.625, 10.375, 14.125]
STEPS = [0.005623413251903491, 0.05623413251903491, 0.01778279410038923, 0.0017782794100389228]  # of four heads
OUTPUTS = {
    "mamba2": [
        [-0.212390162465, 0.178680134456, -0.052917529536, 0.226614323666,
         -0.39356858296, 0.552380098607, 0.023398013918, 0.018813568512],
        [-0.601986432076, 0.075060110656, 0.285320617707, -0.073892875255,
         0.23410711991, 0.013418767148, -0.703254406691, 0.533912797578],
    ],
    "sigmoid": [
        [-1.26328638882, 0.599253331299, -0.684123308798, 0.472022139563,
         -1.128819005448, 1.029882380568, 0.321759566197, 0.354406329519],
        [-0.218165539654, -0.428747152453, 0.783864834072, 0.41580719578,
         -0.07542151033, -0.185304485233, -0.82844324283, 0.546344845688],
    ],
}  # fmt: skip
DECAYS = list(OUTPUTS)


def build(dtype=torch.float64, **options):
    torch.manual_seed(0)
    return zoo.mixers.build("ssd", **({"width": 32, "heads": 4} | options)).to(dtype)


def draw(*shape):
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("decay", DECAYS)
def test_outputs_equal_those_computed_elsewhere(decay):
    assert_golden(golden_mixer("ssd", decay=decay), OUTPUTS[decay], 1e-6)  # initial values are fp32


@pytest.mark.parametrize("decay", DECAYS)
def test_equals_the_recurrence_token_by_token(decay):
    mixer, x = build(decay=decay), draw(2, 67, 32)
    weight, bias = mixer.decay.projection.weight, mixer.decay.bias
    state, outputs = torch.zeros(2, 4, 8, 8, dtype=torch.float64), []
    for token in x.unbind(1):
        q, k, v = (F.silu(token @ m.weight.T).view(2, 4, 8) for m in (mixer.query, mixer.key, mixer.value))
        chosen = token @ weight.T + bias
        if decay == "mamba2":
            step = torch.log(1 + chosen.exp())
            kept = torch.exp(-step * mixer.decay.log_rate.exp())
        else:
            step, kept = torch.ones(2, 4).double(), torch.sigmoid(chosen) ** (1 / 16)
        state = kept[..., None, None] * state + torch.einsum("bh,bhd,bhe->bhde", step, k, v)
        o = torch.einsum("bhd,bhde->bhe", q, state).flatten(1)
        o = o / (o.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        outputs.append((o * F.silu(token @ mixer.gate.weight.weight.T)) @ mixer.out.weight.T)
    torch.testing.assert_close(mixer(x), torch.stack(outputs, 1), rtol=1e-9, atol=1e-9)


def test_rates_and_steps_start_spread_over_the_published_ranges():
    decay = StepDecay(32, 4)
    log_decay, step = decay(torch.zeros(1, 1, 32))
    torch.testing.assert_close(step[0, 0], torch.tensor(STEPS), rtol=1e-5, atol=0)
    torch.testing.assert_close(log_decay[0, 0], -torch.tensor(STEPS) * torch.tensor(RATES), rtol=1e-5, atol=0)


@pytest.mark.parametrize("heads", [1, 2, 3, 16, 64])
def test_initial_values_stay_in_their_ranges_for_any_number_of_heads(heads):
    log_decay, step = StepDecay(32, heads)(torch.zeros(1, 1, 32))
    rates = (-log_decay / step).flatten()
    assert (rates >= 1).all()
    assert (rates <= 16).all()
    assert (step >= 1e-3).all()
    assert (step <= 0.1).all()
    assert len(step.unique()) == len(rates.unique()) == heads


@pytest.mark.parametrize("decay", DECAYS)
def test_gradients_of_the_decay_are_those_of_finite_differences(decay):
    mixer, x, small = build(decay=decay), draw(1, 70, 32), 1e-6
    weight = draw(1, 70, 32)

    def loss():
        return (mixer(x) * weight).sum()

    parameters = list(mixer.decay.parameters())
    for parameter, grad in zip(parameters, torch.autograd.grad(loss(), parameters)):
        for i in range(min(4, parameter.numel())):
            with torch.no_grad():
                flat = parameter.view(-1)
                flat[i] += small
                above = loss()
                flat[i] -= 2 * small
                below = loss()
                flat[i] += small
            assert grad.view(-1)[i].item() == pytest.approx((above - below).item() / (2 * small), rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("decay", DECAYS)
def test_the_decay_is_fp32_whatever_the_model_is(decay):
    x = torch.randn(1, 5, 32)
    mixer = build(torch.float32, decay=decay)
    with torch.autocast("cpu", torch.bfloat16):
        assert mixer.decay(x)[0].dtype == torch.float32
    mixer.to(torch.bfloat16)
    assert mixer.decay(x.to(torch.bfloat16))[0].dtype == torch.float32
    silence = mixer.decay(torch.zeros(1, 5, 32, dtype=torch.bfloat16))[0]
    torch.testing.assert_close(silence, mixer.float().decay(torch.zeros(1, 5, 32))[0], rtol=1e-6, atol=0)
    assert build(decay=decay).decay(x.double())[0].dtype == torch.float64


@pytest.mark.parametrize("decay", DECAYS)
def test_a_decay_is_never_a_growth_and_outliers_do_no_harm(decay):
    mixer = build(torch.float32, decay=decay)
    x = (1e5 * torch.randn(1, 80, 32)).requires_grad_()
    assert (mixer.decay(x)[0] <= 0).all()
    y = mixer(x)
    y.square().mean().backward()
    assert torch.isfinite(y).all()
    assert all(torch.isfinite(t.grad).all() for t in (x, *mixer.parameters()))


def test_tokens_that_all_choose_the_same_decay_give_a_constant_one():
    mixer, x = build(norm="srms", gate="none"), draw(2, 70, 32)
    with torch.no_grad():
        mixer.decay.projection.weight.zero_()
    log_decay, step = (y[0, 0] for y in mixer.decay(x))
    q, k, v = (F.silu(m(x)).view(2, 70, 4, 8) for m in (mixer.query, mixer.key, mixer.value))
    y, _ = linear_attention(q, step[:, None] * k, v, log_decay)
    torch.testing.assert_close(mixer(x), mixer.out(mixer.norm(y.flatten(2))), rtol=1e-9, atol=1e-9)


def test_an_open_sigmoid_forgets_nothing():
    mixer, x = build(decay="sigmoid", norm="srms", gate="none"), draw(2, 70, 32)
    with torch.no_grad():
        mixer.decay.projection.weight.zero_()
        mixer.decay.bias.fill_(50)
    q, k, v = (F.silu(m(x)).view(2, 70, 4, 8) for m in (mixer.query, mixer.key, mixer.value))
    y = torch.einsum("bhtj,bjhe->bthe", torch.einsum("bthd,bjhd->bhtj", q, k).tril(), v)
    torch.testing.assert_close(mixer(x), mixer.out(mixer.norm(y.flatten(2))), rtol=1e-9, atol=1e-9)
