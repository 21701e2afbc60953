"""The RMS norms against their formula, on the path that CPUs take."""

import pytest
import torch
import torch.nn.functional as F

from zoo.mixers.parts.norms import EPS, build_norm, rms_norm


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("shape", [(7,), (3, 5), (2, 3, 4, 8), (0, 4)])
def test_value_and_gradients_are_those_of_the_formula(weighted, shape):
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(shape[-1], dtype=torch.float64, requires_grad=True) if weighted else None
    inputs = [x] if weight is None else [x, weight]
    formula = x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * (1 if weight is None else weight)
    upstream = torch.randn(shape, dtype=torch.float64)
    for ours, exact in zip(
        (rms_norm(x, weight), *torch.autograd.grad(rms_norm(x, weight), inputs, upstream)),
        (formula, *torch.autograd.grad(formula, inputs, upstream)),
    ):
        torch.testing.assert_close(ours, exact, rtol=1e-10, atol=1e-10)


def test_gradient_by_finite_differences_and_of_a_stride_zero_gradient():
    x, weight = torch.randn(4, 6, dtype=torch.float64, requires_grad=True), torch.randn(6, dtype=torch.float64)
    assert torch.autograd.gradcheck(rms_norm, (x, weight.requires_grad_()))
    assert torch.autograd.gradcheck(lambda y: rms_norm(y.mT, None).sum(), (x,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_low_precision_is_computed_in_fp32(dtype):
    x = (100 * torch.randn(5, 64)).to(dtype)
    exact = F.rms_norm(x.double(), (64,), None, EPS)
    assert build_norm("srms", 64)(x).dtype == dtype
    torch.testing.assert_close(build_norm("rms", 64)(x).double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-6)


def test_small_rows_are_kept_finite():
    x = torch.zeros(2, 8, requires_grad=True)
    rms_norm(x, None).sum().backward()
    torch.testing.assert_close(x.grad, torch.full((2, 8), EPS**-0.5))
