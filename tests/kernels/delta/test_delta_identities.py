"""What delta attention is where some of its arguments are special; random calls against the reference."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from tests.kernels.delta_oracle import DECAYS, RULES, make_case, run
from tests.kernels.linear_oracle import make_documents
from zoo_kernels import delta_attention, linear_attention


def draw(length=70, width=16, value=8, heads=2):
    q, k = (F.normalize(torch.randn(2, length, heads, width, dtype=torch.float64), dim=-1) for _ in range(2))
    return q, k, torch.randn(2, length, heads, value, dtype=torch.float64), torch.rand(2, length, heads).double()


@pytest.mark.parametrize("shape", [(2,), (2, 70, 2), (2, 70, 2, 16)])
def test_gates_of_one_are_no_gates(shape):
    q, k, v, beta = draw()
    gated = delta_attention(q, k, v, torch.zeros(shape).double(), beta=beta, return_state=True)
    torch.testing.assert_close(gated, delta_attention(q, k, v, beta=beta, return_state=True), rtol=1e-13, atol=1e-13)


def test_equal_channels_are_one_decay_per_head():
    q, k, v, beta = draw()
    per_head = -torch.rand(2, 70, 2).double()
    per_channel = per_head[..., None].expand(q.shape)
    a, b = (delta_attention(q, k, v, x, beta=beta, return_state=True) for x in (per_head, per_channel))
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("decay", DECAYS)
def test_beta_is_a_choice_of_read_erase_and_value(decay):
    x = make_case(70, "beta", decay).inputs
    beta = x.pop("beta")[..., None]
    general = {"read": x["k"], "erase": beta * x["k"], "v": beta * x["v"]}
    torch.testing.assert_close(run(x | general), run(x | {"beta": beta[..., 0]}), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [None, (2,), (2, 70, 2), (2, 70, 2, 16)])
def test_without_erase_it_is_linear_attention(shape):
    q, k, v, _ = draw()
    decay = None if shape is None else -torch.rand(shape).double()
    nothing = {"read": torch.randn_like(k), "erase": torch.zeros_like(k)}
    want = linear_attention(q, k, v, decay, return_state=True)
    for options in ({}, nothing):
        got = delta_attention(q, k, v, decay, return_state=True, **options)
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_orthonormal_keys_at_beta_one_are_linear_attention():
    q, _, v, beta = draw(length=64, width=64)
    k = torch.linalg.qr(torch.randn(2, 2, 64, 64, dtype=torch.float64)).Q.transpose(1, 2)
    got, _ = delta_attention(q, k, v, beta=torch.ones_like(beta))
    torch.testing.assert_close(got, linear_attention(q, k, v)[0], rtol=1e-12, atol=1e-12)


def test_beta_one_reads_back_what_was_just_written_and_beta_zero_writes_nothing():
    _, k, v, beta = draw()
    torch.testing.assert_close(delta_attention(k, k, v, beta=torch.ones_like(beta))[0], v, rtol=1e-12, atol=1e-12)
    assert not delta_attention(k, k, v, beta=torch.zeros_like(beta))[0].any()


def test_beta_two_without_a_write_keeps_the_norm_of_the_state():
    q, k, v, beta = draw(length=500)
    state = torch.randn(2, 2, 16, 8, dtype=torch.float64)
    _, last = delta_attention(
        q, k, 0 * v, beta=torch.full_like(beta, 2), initial_state=state, return_state=True
    )  # fmt: skip
    torch.testing.assert_close(last.norm(dim=(2, 3)), state.norm(dim=(2, 3)), rtol=1e-12, atol=1e-12)


def random_case(seed):
    pick = random.Random(seed)
    torch.manual_seed(seed)
    rule, decay, length = pick.choice(RULES), pick.choice(DECAYS), pick.choice((1, 2, 31, 33, 64, 70, 130))
    sizes = {"batch": pick.choice((1, 3)), "heads": pick.choice((1, 2)), "fold": pick.choice((1, 2, 4))}
    sizes |= {"width": pick.choice((1, 5, 16, 40)), "value": pick.choice((1, 8, 20))}
    case = make_case(length, rule, decay, **sizes, strength=pick.choice((0.1, 5.0, 1000.0)))
    if pick.random() < 0.5:
        rows = [sorted({0, length, *(pick.randrange(length + 1) for _ in range(4))}) for _ in range(sizes["batch"])]
        case.options["documents"] = make_documents([[b - a for a, b in pairwise(row)] for row in rows])
    case.options["scale"] = pick.choice((1.0, -0.7, 0.3))
    if rule == "general":  # half of what is read is erased at most, so that no state grows, and none is only rounding
        read, erase = case.inputs["read"].repeat_interleave(sizes["fold"], 2), case.inputs["erase"]
        case.inputs["erase"] = 0.5 * torch.where((read * erase).sum(-1, keepdim=True) < 0, -erase, erase)
    return case


@pytest.mark.parametrize("first", [0, pytest.param(20, marks=pytest.mark.slow)])
def test_random_calls_equal_the_reference(first):
    for seed in range(first, 20 if first == 0 else 400):
        case = random_case(seed)
        want = case.measured(backend="reference")
        for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 3e-5)):
            for name, got in case.measured(dtype).items():
                size = want[name].abs().max().clamp(min=1e-2)
                assert (got.double() - want[name]).abs().max() <= tolerance * size, f"seed {seed}, {name}, {dtype}"
