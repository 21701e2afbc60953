"""Strips: the form of long windows and banded layouts on CPUs, at short lengths against the definition in fp64."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.softmax_oracle import Pattern, dense, sparse
from zoo_kernels import BlockLayout, softmax_attention
from zoo_kernels.softmax.cpu import forms, strip_plan, strips

pytestmark = pytest.mark.usefixtures("poisoned")


@pytest.fixture(autouse=True)
def served(monkeypatch):
    """Strips from the first token on, several to a call; counts the calls."""
    calls = []
    for name in ("forward", "backward"):
        original = getattr(strips, name)
        monkeypatch.setattr(strips, name, lambda *args, original=original: calls.append(1) or original(*args))
    monkeypatch.setattr(forms, "SHORTEST", 1)
    monkeypatch.setattr(strip_plan, "NUMBERS", 4000)
    yield calls


def draw(length, heads=4, groups=2, batch=2):
    shapes = [(batch, length, n, 8) for n in (heads, groups, groups)]
    return [torch.randn(shape, dtype=torch.float64).float().double().requires_grad_() for shape in shapes]


def compare(function, oracle, inputs, strided=False):
    """Output, log-sum-exp and gradients in fp32 against fp64."""
    weight = torch.randn(inputs[0].shape, dtype=torch.float64)
    o, lse = oracle(*inputs)
    want = [o, lse, *torch.autograd.grad((o * weight).sum(), inputs)]
    low = [x.detach().float().requires_grad_() for x in inputs]
    given = [x.transpose(1, 2).contiguous().transpose(1, 2) if strided else x for x in low]
    o, lse = function(*given)
    got = [o, lse, *torch.autograd.grad((o * weight.float()).sum(), low)]
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("length", [200, 256, 301])
@pytest.mark.parametrize(("window", "sink_tokens"), [(1, 0), (2, 3), (16, 0), (17, 1), (33, 5), (40, 20), (50, 0)])
def test_windows(served, length, window, sink_tokens):
    rule = {"window": window, "sink_tokens": sink_tokens}
    compare(lambda *x: softmax_attention(*x, **rule, return_lse=True), lambda *x: dense(*x, **rule), draw(length))
    assert len(served) == 2


@pytest.mark.parametrize(("heads", "groups"), [(1, 1), (3, 3), (6, 2), (4, 1)])
def test_heads_share_keys(served, heads, groups):
    rule = {"window": 20, "sink_tokens": 2}
    inputs = draw(130, heads, groups)
    compare(lambda *x: softmax_attention(*x, **rule, return_lse=True), lambda *x: dense(*x, **rule), inputs, True)
    assert len(served) == 2


def index(blocks, lists, window, shared, random):
    """Band, blocks that all read, and others by head; some rows have none."""
    rows = []
    for _ in range(lists):
        head = []
        for i in range(blocks):
            chosen = {j for j in (*shared, *range(i - window + 1, i + 1)) if 0 <= j <= i}
            chosen |= set(torch.randint(0, i + 1, (random,)).tolist()) if i % 5 else set()
            head.append(sorted(chosen))
        rows.append(head)
    longest = max(len(r) for head in rows for r in head)
    return torch.tensor([[r + [-1] * (longest - len(r)) for r in head] for head in rows])[None]


@pytest.mark.parametrize("length", [16 * 17, 16 * 18 - 5])
@pytest.mark.parametrize("lists", [1, 4])
@pytest.mark.parametrize(("window", "shared", "random"), [(2, (), 0), (3, (0,), 2), (4, (0, 1, 7), 0), (2, (5,), 3)])
def test_layouts_with_a_band(served, length, lists, window, shared, random):
    pattern = Pattern(16, index(18, lists, window, shared, random))
    layout = pattern.layout()
    compare(lambda *x: softmax_attention(*x, layout=layout, return_lse=True), lambda *x: sparse(*x, pattern=pattern),
            draw(length))  # fmt: skip
    assert len(served) == 2


def test_rules_of_single_blocks_are_kept(served):
    chosen = index(18, 1, 2, (0,), 3)
    rules = torch.where(torch.rand(chosen.shape) < 0.2, 0, -1)
    rules[..., :] = torch.where((torch.arange(18)[:, None] - chosen).abs() < 2, -1, rules)
    pattern = Pattern(16, chosen, rules, torch.rand(1, 16, 16) < 0.6)
    layout = pattern.layout()
    compare(lambda *x: softmax_attention(*x, layout=layout, return_lse=True), lambda *x: sparse(*x, pattern=pattern),
            draw(16 * 18))  # fmt: skip
    assert len(served) == 2


def test_a_layout_without_a_band_goes_another_way(served):
    layout = BlockLayout.from_index(torch.zeros(1, 1, 18, 1, dtype=torch.long), 16)
    softmax_attention(*(x.detach().float() for x in draw(16 * 18)), layout=layout)
    assert not served


@pytest.mark.parametrize("of_output", [0.0, 1e-3, 1.0])
@pytest.mark.parametrize("rule", [{}, {"window": 20, "sink_tokens": 2}, {"window": 100}], ids=str)
def test_gradients_of_the_log_sum_exp(served, of_output, rule):
    """Carried by the output, or, where that has no gradient, by the plain form."""
    inputs = [x.detach().float().requires_grad_() for x in draw(130)]
    wide = [x.detach().double().requires_grad_() for x in inputs]
    weight = torch.randn(inputs[0].shape, dtype=torch.float64)
    grads = []
    for arrays, (o, lse) in (
        (inputs, softmax_attention(*inputs, **rule, return_lse=True)),
        (wide, dense(*wide, **rule)),
    ):
        total = lse.square().sum() + of_output * (o * weight.to(o.dtype)).sum()
        grads.append(torch.autograd.grad(total, arrays, allow_unused=True))
    for a, b in zip(*grads):
        b = torch.zeros_like(a) if b is None else b
        torch.testing.assert_close(a.double(), b.double(), rtol=1e-3, atol=2e-4)
    assert len(served) == (0 if rule.get("window") != 20 else 1 + (of_output > 0))
