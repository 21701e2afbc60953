"""Softmax attention: both backends compute the definition, forward and backward, in fp64."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.linear_oracle import make_documents
from tests.kernels.softmax_oracle import dense
from tests.tiers import in_ci
from zoo_kernels import softmax_attention, softmax_attention_step
from zoo_kernels.softmax.cpu import blocked

pytestmark = pytest.mark.usefixtures("poisoned")
both = pytest.mark.parametrize("backend", ["torch", "reference"])

DOCUMENTS = make_documents([[1, 13, 1, 22], [30, 6, 1]])
SINK_LOGITS = torch.tensor([0.5, -1.0, 2.0, 0.0], dtype=torch.float64)
RULES = {
    "causal": {},
    "scale": {"scale": 0.3},
    "window 0": {"window": 0},
    "window 1": {"window": 1},
    "window 7": {"window": 7},
    "window T": {"window": 37},
    "window > T": {"window": 1000},
    "sinks": {"window": 4, "sink_tokens": 3},
    "sinks alone": {"window": 0, "sink_tokens": 2},
    "sinks without window": {"sink_tokens": 2},
    "documents": {"documents": DOCUMENTS},
    "documents, window": {"documents": DOCUMENTS, "window": 5},
    "documents, sinks": {"documents": DOCUMENTS, "window": 3, "sink_tokens": 2},
    "documents, no key": {"documents": DOCUMENTS, "window": 0, "sink_tokens": 1},
    "sink logits": {"sink_logits": SINK_LOGITS},
    "sink logits, window 0": {"sink_logits": SINK_LOGITS, "window": 0},
    "sink logits, documents": {"sink_logits": SINK_LOGITS, "documents": DOCUMENTS, "window": 3, "sink_tokens": 1},
}
every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())


def draw(queries=37, keys=37, heads=4, groups=2, width=8, value=8):
    shapes = (2, queries, heads, width), (2, keys, groups, width), (2, keys, groups, value)
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


def gradients(function, inputs, rule, lse_weight=1.0, **options):
    """Output, log-sum-exp and gradients; rows of the log-sum-exp without a key get no upstream gradient."""
    rule = {n: x.clone().requires_grad_() if n == "sink_logits" else x for n, x in rule.items()}
    o, lse = function(*inputs, **rule, **options)
    torch.manual_seed(1)
    total = (o * torch.randn(o.shape, dtype=o.dtype)).sum()
    total = total + lse_weight * (lse * torch.randn(lse.shape, dtype=o.dtype)).masked_fill(lse == -torch.inf, 0).sum()
    leaves = [*inputs, *([rule["sink_logits"]] if "sink_logits" in rule else [])]
    return o.detach(), lse.detach(), *torch.autograd.grad(total, leaves)


def assert_same(got, want, tolerance=1e-11):
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@both
@every_rule
@pytest.mark.parametrize("block", [*in_ci(256, 5), 16])
def test_equals_the_definition(rule, block, backend, monkeypatch):
    monkeypatch.setattr(blocked, "QUERY_BLOCK", block)
    inputs = draw()
    assert_same(
        gradients(softmax_attention, inputs, rule, backend=backend, return_lse=True), gradients(dense, inputs, rule)
    )


@both
@every_rule
@pytest.mark.parametrize("queries", [*in_ci(1, 17), 5])
def test_fewer_queries_than_keys_are_the_last_ones(rule, queries, backend, monkeypatch):
    monkeypatch.setattr(blocked, "QUERY_BLOCK", 4)
    inputs = draw(queries=queries)
    assert_same(
        gradients(softmax_attention, inputs, rule, backend=backend, return_lse=True), gradients(dense, inputs, rule)
    )


@both
@every_rule
def test_the_output_is_the_same_without_lse(rule, backend):
    inputs = draw()
    o = softmax_attention(*inputs, **rule, backend=backend)
    got = o.detach(), *torch.autograd.grad(o.square().sum(), inputs)
    o, _ = softmax_attention(*inputs, **rule, backend=backend, return_lse=True)
    assert_same(got, (o.detach(), *torch.autograd.grad(o.square().sum(), inputs)))


@both
@pytest.mark.parametrize(("heads", "groups"), [(1, 1), (4, 4), (4, 1), (6, 2), (6, 3), (8, 2)])
@pytest.mark.parametrize("rule", [{}, {"window": 5}], ids=["causal", "window"])
def test_query_head_h_reads_key_head_h_div_group(heads, groups, rule, backend):
    q, k, v = draw(heads=heads, groups=groups)
    o = softmax_attention(q, k, v, **rule, backend=backend)
    for h in range(heads):
        g = h // (heads // groups)
        alone, _ = dense(q[:, :, h : h + 1], k[:, :, g : g + 1], v[:, :, g : g + 1], **rule)
        torch.testing.assert_close(o[:, :, h : h + 1], alone, rtol=1e-12, atol=1e-12)


@both
@pytest.mark.parametrize(("width", "value"), [(1, 1), (16, 32), (60, 60), (80, 16), (128, 128), (256, 256)])
@pytest.mark.parametrize("rule", [{}, {"window": 9}], ids=["causal", "window"])
def test_any_width(width, value, rule, backend):
    inputs = draw(width=width, value=value)
    o = softmax_attention(*inputs, **rule, backend=backend)
    torch.testing.assert_close(o, dense(*inputs, **rule)[0], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("length", [1, 2, 255, 256, 257, 300])
@pytest.mark.parametrize("rule", [{}, {"window": 100, "sink_tokens": 1}], ids=["causal", "window"])
def test_any_length(length, rule):
    inputs = draw(queries=length, keys=length)
    assert_same(gradients(softmax_attention, inputs, rule, return_lse=True), gradients(dense, inputs, rule))


@both
@pytest.mark.parametrize("rule", [{}, {"window": 4}, {"window": 3, "sink_tokens": 2}], ids=str)
def test_packed_documents_equal_each_alone(rule, backend):
    inputs = draw()
    packed = softmax_attention(*inputs, **rule, documents=DOCUMENTS, backend=backend)
    packed = packed.detach(), *torch.autograd.grad(packed.square().sum(), inputs)
    for row, lengths in enumerate([[1, 13, 1, 22], [30, 6, 1]]):
        for start, n in zip([0, *torch.tensor(lengths).cumsum(0).tolist()], lengths):
            part = [x[row : row + 1, start : start + n].detach().requires_grad_() for x in inputs]
            o = softmax_attention(*part, **rule, backend=backend)
            alone = o.detach(), *torch.autograd.grad(o.square().sum(), part)
            assert_same([x[row : row + 1, start : start + n] for x in packed], alone)


@both
def test_rows_without_a_key_give_zero_and_no_gradient(backend):
    inputs = draw()
    o, lse = softmax_attention(*inputs, window=0, backend=backend, return_lse=True)
    assert not o.any()
    assert (lse == -torch.inf).all()
    for grad in torch.autograd.grad(o.sum(), inputs):
        assert not grad.any()  # NaN would count as true


@both
def test_rows_without_a_key_pass_no_gradient_from_their_lse(backend):
    inputs = draw()
    o, lse = softmax_attention(*inputs, window=0, sink_tokens=1, documents=DOCUMENTS, backend=backend, return_lse=True)
    for grad in torch.autograd.grad([o.sum(), lse.exp().sum()], inputs):
        assert torch.isfinite(grad).all()


@both
@pytest.mark.parametrize("window", [1, 6, 20])
def test_two_parts_merged_by_lse_equal_the_whole(window, backend):
    """Far keys are seen by shifting the keys, near keys by the window; gradients flow through both lse."""
    q, k, v = inputs = draw()
    near, near_lse = softmax_attention(q, k, v, window=window, backend=backend, return_lse=True)
    shifted = [torch.cat([torch.zeros_like(x[:, :window]), x[:, : 37 - window]], 1) for x in (k, v)]
    ids = (torch.arange(37) >= window).long().expand(2, 37)  # the padding is another document
    far, far_lse = softmax_attention(q, *shifted, documents=ids, backend=backend, return_lse=True)
    far_lse = far_lse.masked_fill(ids[..., None] == 0, -torch.inf)
    total = torch.logaddexp(near_lse, far_lse)
    merged = near * (near_lse - total).exp()[..., None] + far * (far_lse - total).exp()[..., None]
    whole, lse = softmax_attention(*inputs, backend=backend, return_lse=True)
    torch.testing.assert_close(total, lse, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(merged, whole, rtol=1e-12, atol=1e-12)
    weight = torch.randn(whole.shape, dtype=whole.dtype)
    assert_same(
        torch.autograd.grad((merged * weight).sum(), inputs), torch.autograd.grad((whole * weight).sum(), inputs)
    )


@both
def test_strided_inputs_and_broadcast_gradients(backend):
    inputs = draw()
    for rule in ({}, {"window": 5}):
        views = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in inputs]
        strided = torch.autograd.grad(softmax_attention(*views, **rule, backend=backend).sum(), inputs)
        assert_same(strided, torch.autograd.grad(dense(*inputs, **rule)[0].sum(), inputs))


@both
@pytest.mark.parametrize(
    "rule", [{}, {"window": 2, "sink_tokens": 1}, {"documents": make_documents([[1, 4], [3, 2]])}], ids=str
)
def test_gradients_equal_finite_differences(rule, backend):
    inputs = draw(queries=4, keys=5, heads=2, groups=1, width=3, value=2)
    assert torch.autograd.gradcheck(
        lambda *x: softmax_attention(*x, **rule, backend=backend, return_lse=True), tuple(inputs)
    )


@pytest.mark.parametrize(
    "rule",
    [{}, {"window": 1}, {"window": 6}, {"window": 4, "sink_tokens": 2}, {"sink_logits": SINK_LOGITS}, {"scale": 0.7}],
    ids=["all", "window 1", "window 6", "sinks", "sink logits", "scale"],
)
def test_a_step_equals_the_last_query_of_each_row(rule):
    lengths = torch.tensor([1, 2, 20, 30])
    q = torch.randn(4, 4, 8, dtype=torch.float64)
    k, v = (torch.randn(4, 30, 2, 8, dtype=torch.float64) for _ in range(2))
    for row, n in enumerate(lengths):  # what lies beyond a row's length must not matter
        k[row, n:], v[row, n:] = 1e3, 1e3
    o = softmax_attention_step(q, k, v, lengths, **rule)
    for row, n in enumerate(lengths):
        part = slice(row, row + 1)
        alone, _ = dense(q[part, None], k[part, :n], v[part, :n], **rule)
        torch.testing.assert_close(o[part], alone[:, 0], rtol=1e-12, atol=1e-12)


def test_a_step_over_no_key_gives_zero():
    q, cache = torch.randn(2, 4, 8), torch.randn(2, 5, 2, 8)
    o = softmax_attention_step(q, cache, cache, torch.tensor([0, 3]))
    assert not o[0].any()
    assert o[1].all()


def test_a_step_with_a_window_of_no_key_gives_zero():
    q, cache = torch.randn(2, 4, 8), torch.randn(2, 5, 2, 8)
    assert not softmax_attention_step(q, cache, cache, torch.tensor([2, 3]), window=0).any()


@pytest.mark.parametrize(
    "rule", [{}, {"window": 6}, {"window": 4, "sink_tokens": 2}, {"window": 4, "sink_tokens": 2, "ring": True}], ids=str
)
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_step_in_fp32_equals_one_in_fp64(rule, groups):
    """The fused attention serves the first, plain products the second; one row has no key."""
    lengths = torch.tensor([0, 2, 20, 30])
    q, k, v = torch.randn(4, 4, 8), torch.randn(4, 30, groups, 8), torch.randn(4, 30, groups, 8)
    narrow = softmax_attention_step(q, k, v, lengths, **rule)
    wide = softmax_attention_step(q.double(), k.double(), v.double(), lengths, **rule)
    torch.testing.assert_close(narrow.double(), wide, rtol=1e-5, atol=1e-6)
    assert not narrow[0].any()
