"""Any scale: every form of both families computes the definition, forward, log-sum-exp and gradients."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.linear_oracle import make_documents
from tests.tiers import in_ci
from zoo_kernels import BlockLayout, linear_attention, softmax_attention, softmax_attention_step
from zoo_kernels.linear import torch_ops as custom

BLOCKS = torch.tensor([[[[0, -1, -1], [0, 1, -1], [0, 2, -1]]]])
FORMS = {
    "causal": {},
    "window": {"window": 5},
    "sinks": {"window": 4, "sink_tokens": 2},
    "documents": {"documents": make_documents([[20, 1, 19]])},
    "layout": {"layout": BlockLayout.from_index(BLOCKS, 16)},
    "bias": {"layout": BlockLayout.from_index(BLOCKS, 16), "block_bias": torch.linspace(-1, 1, 9).view(1, 1, 3, 3)},
    "sink logits": {"sink_logits": torch.tensor([0.5, -torch.inf])},
}
SCALES = [-1.0, 0.0, 1e-300, 30.0, *in_ci(-0.3, -0.0, 1e-45, -1e-300, 1e-20, -30.0)]
every_form = pytest.mark.parametrize("name", FORMS)


def draw(width=8, value=8, length=40, dtype=torch.float32):
    return [torch.randn(1, length, h, w).to(dtype) for h, w in ((2, width), (1, width), (1, value))]


def solve(inputs, dtype, **options):
    leaves = [x.to(dtype).requires_grad_() for x in inputs]
    o, lse = softmax_attention(*leaves, **options, return_lse=True)
    torch.manual_seed(1)
    upstream = torch.randn(o.shape).to(inputs[0].dtype), torch.randn(lse.shape)
    total = (o * upstream[0].to(o.dtype)).sum() + (lse * upstream[1].to(lse.dtype)).sum()
    alone = torch.autograd.grad((o * upstream[0].to(o.dtype)).sum(), leaves, retain_graph=True)
    return o.detach(), lse.detach(), *torch.autograd.grad(total, leaves), *alone


def assert_close(got, want, tolerance):
    for a, b in zip(got, want, strict=True):
        assert torch.isfinite(a).all()
        assert (a.double() - b).abs().max() <= tolerance * max(b.abs().max(), 1e-6)


@every_form
@pytest.mark.parametrize("scale", SCALES)
def test_softmax_attention_takes_any_scale(scale, name):
    for widths in ((8, 8), (8, 12), (1, 1)):  # the fused form and the tiles
        inputs = draw(*widths)
        want = solve(inputs, torch.float64, **FORMS[name], scale=scale, backend="reference")
        assert_close(solve(inputs, torch.float64, **FORMS[name], scale=scale), want, 1e-9)
        assert_close(solve(inputs, torch.float32, **FORMS[name], scale=scale), want, 2e-4)


@pytest.mark.parametrize("scale", [-1.0, 0.0, -3.0])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
@pytest.mark.parametrize("width", [1, 8])
def test_half_precision_takes_scales_below_zero(width, dtype, scale):
    inputs = draw(width, width, dtype=dtype)
    want = solve(inputs, torch.float64, scale=scale, backend="reference")
    assert_close(solve(inputs, dtype, scale=scale), want, 0.04)


@every_form
@pytest.mark.parametrize("scale", [1e25, -1e25])
def test_scores_beyond_any_finite_mask_hide_the_future(scale, name):
    """One key takes all: its value is the output, in every form."""
    inputs = draw()
    want = solve(inputs, torch.float64, **FORMS[name], scale=scale, backend="reference")[0]
    got = solve(inputs, torch.float32, **FORMS[name], scale=scale)
    assert all(torch.isfinite(x).all() for x in got[:2])
    torch.testing.assert_close(got[0].double(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rule", [{"window": 600}, {"window": 100, "sink_tokens": 3}], ids=str)
@pytest.mark.parametrize("scale", [-2.0, *in_ci(0.0, 1e25)])
def test_long_windows_take_any_scale(scale, rule):
    inputs = draw(8, 8, 2100)
    want = softmax_attention(*(x.double() for x in inputs), **rule, scale=scale, backend="reference")
    torch.testing.assert_close(softmax_attention(*inputs, **rule, scale=scale).double(), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("name", ["causal", "sinks", "sink logits"])
@pytest.mark.parametrize("scale", [-1.0, 0.0, 1e-300, 1e25])
def test_a_step_takes_any_scale(scale, name, backend):
    if backend == "triton":
        pytest.importorskip("triton")
    q, k, v = draw()
    want = softmax_attention(*(x.double() for x in (q, k, v)), **FORMS[name], scale=scale, backend="reference")
    lengths = torch.tensor([40])
    o, lse = softmax_attention_step(
        q[:, -1], k, v, lengths, **FORMS[name], scale=scale, backend=backend, return_lse=True
    )  # fmt: skip
    assert torch.isfinite(lse).all()
    torch.testing.assert_close(o.double(), want[:, -1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [*in_ci("causal", "sinks"), "bias"])
@pytest.mark.parametrize("scale", [-0.5, *in_ci(0.0)])
def test_triton_takes_scales_below_zero(scale, name):
    pytest.importorskip("triton")
    inputs = draw()
    want = solve(inputs, torch.float64, **FORMS[name], scale=scale, backend="reference")
    assert_close(solve(inputs, torch.float32, **FORMS[name], scale=scale, backend="triton"), want, 1e-4)


def test_weights_that_triton_computes_again_are_at_most_one():
    """Log-sum-exps of 1e8 are rounded to a multiple of 8, which exp would make 3000."""
    pytest.importorskip("triton")
    q, k, v = (x.requires_grad_() for x in draw())
    o = softmax_attention(q, k, v, scale=1e8, backend="triton")
    (grad,) = torch.autograd.grad(o.sum(), v)
    assert (grad.abs() <= 80 + 1e-3).all()  # 40 rows of 2 heads


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), -float("inf"), "1", True])
def test_what_is_no_finite_number_is_refused(scale):
    q, k, v = draw()
    for call in (
        lambda: softmax_attention(q, k, v, scale=scale),
        lambda: softmax_attention_step(q[:, -1], k, v, torch.tensor([40]), scale=scale),
        lambda: linear_attention(q, q, q, scale=scale),
    ):
        with pytest.raises(ValueError, match=f"scale={scale}: expected a finite number"):
            call()


@pytest.mark.parametrize("scale", [1e31, -1e40])
def test_scales_that_leave_no_room_for_scores_are_refused(scale):
    q, k, v = draw()
    with pytest.raises(ValueError, match=r"at most 1e\+30 in size"):
        softmax_attention(q, k, v, scale=scale)


@pytest.mark.parametrize("algorithm", ["auto", *in_ci("chunk", "scan", "parallel")])
@pytest.mark.parametrize("scale", [-1.0, *in_ci(-1e-5, 0.0)])
def test_linear_attention_in_fp16_takes_scales_below_zero(scale, algorithm, monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setattr(custom, "SHORTEST", 64)
    heads = [torch.randn(1, 70, 2, 16).half() for _ in range(3)]
    decay, state = -torch.rand(1, 70, 2), torch.randn(1, 2, 16, 16)
    upstream = torch.randn(1, 70, 2, 16).half(), torch.randn(1, 2, 16, 16)
    results = []
    for dtype, backend in ((torch.float16, "triton"), (torch.float64, "reference")):
        leaves = [x.to(dtype).requires_grad_() for x in heads]
        wide = [x.to(torch.promote_types(dtype, torch.float32)).requires_grad_() for x in (decay, state)]
        made = linear_attention(
            *leaves, wide[0], initial_state=wide[1], return_state=True, scale=scale, backend=backend,
            algorithm=algorithm,
        )  # fmt: skip
        gradients = torch.autograd.grad(made, [*leaves, *wide], [g.to(x.dtype) for g, x in zip(upstream, made)])
        results.append([x.detach() for x in (*made, *gradients)])
    for got, want in zip(*results):
        assert (got.double() - want).abs().max() <= 1e-2 * max(want.abs().max(), 1e-4)
