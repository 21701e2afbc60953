"""Softmax attention: precision, autocast, compilation, empty sequences, the log line and refused arguments."""

from __future__ import annotations

import logging
from functools import cache, partial

import pytest
import torch

from tests.kernels.linear_oracle import make_documents
from tests.kernels.softmax_oracle import dense
from zoo_kernels import BackendError, backend, softmax_attention, softmax_attention_step

both = pytest.mark.parametrize("backend_name", ["torch", "reference"])
RULES = {
    "causal": {},
    "window": {"window": 20, "sink_tokens": 1},
    "documents": {"documents": make_documents([[1, 60, 68], [129], [64, 65], [70, 58, 1]])},
}
every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())


def solve(function, rows, weight, dtype, rule):
    inputs = [x.to(dtype).requires_grad_() for x in rows]
    o = function(*inputs, **rule)
    o = o[0] if isinstance(o, tuple) else o
    return o.detach(), *torch.autograd.grad((o * weight.to(dtype)).sum(), inputs)


@cache
def solved(name, dtype):
    """Numbers that ``dtype`` can hold, and their exact and plain solution."""
    torch.manual_seed(0)
    rows = [torch.randn(4, 129, heads, 16).to(dtype).double() for heads in (2, 1, 1)]
    weight = torch.randn(4, 129, 2, 16).to(dtype).double()
    return rows, weight, *(solve(dense, rows, weight, d, RULES[name]) for d in (torch.float64, dtype))


@both
@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=["fp32", "fp16", "bf16"])
def test_error_is_at_most_twice_that_of_plain_code(name, dtype, backend_name):
    """In every head and block of tokens."""
    rows, weight, exact, plain = solved(name, dtype)
    ours = solve(partial(softmax_attention, backend=backend_name), rows, weight, dtype, RULES[name])
    for want, base, got in zip(exact, plain, ours):
        assert got.dtype == dtype
        for head in range(want.shape[2]):
            for parts in zip(*(x[:, :, head].double().split([64, 65], 1) for x in (want, base, got))):
                allowed = 2 * ((parts[1] - parts[0]).abs().max() + torch.finfo(dtype).eps * parts[0].abs().max())
                assert (parts[2] - parts[0]).abs().max() <= allowed


@both
@every_rule
@pytest.mark.parametrize("size", [1e2, 1e4])
def test_large_scores_do_not_overflow(rule, size, backend_name):
    inputs = [(size * torch.randn(4, 129, 2, 8)).requires_grad_() for _ in range(3)]
    o, lse = softmax_attention(*inputs, **rule, backend=backend_name, return_lse=True)
    assert torch.isfinite(o).all()
    assert torch.isfinite(lse).all()
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad((o + lse[..., None]).sum(), inputs))


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_output_has_the_dtype_of_q_and_lse_is_fp32_or_better(dtype, backend_name):
    x = torch.randn(1, 9, 2, 8, dtype=dtype)
    o, lse = softmax_attention(x, x, x, sink_logits=torch.zeros(2), backend=backend_name, return_lse=True)
    assert o.dtype == dtype
    assert lse.dtype == torch.promote_types(dtype, torch.float32)


@both
@every_rule
def test_autocast_changes_nothing(rule, backend_name):
    inputs = [torch.randn(4, 129, 2, 8, requires_grad=True) for _ in range(3)]
    results = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            o, lse = softmax_attention(*inputs, **rule, backend=backend_name, return_lse=True)
            short = softmax_attention(*inputs, **rule, backend=backend_name)
        grads = torch.autograd.grad((o * lse[..., None]).sum(), inputs)
        results.append((o, lse, short, *grads))
    assert all(map(torch.equal, *results))


def test_autocast_changes_no_step():
    q, cache = torch.randn(2, 4, 8), torch.randn(2, 5, 2, 8)
    outside = softmax_attention_step(q, cache, cache, torch.tensor([2, 5]))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(softmax_attention_step(q, cache, cache, torch.tensor([2, 5])), outside)


@both
def test_no_queries_give_no_output(backend_name):
    k = torch.randn(2, 5, 1, 8)
    o, lse = softmax_attention(k[:, :0], k, k, backend=backend_name, return_lse=True)
    assert o.shape == (2, 0, 1, 8)
    assert lse.shape == (2, 0, 1)
    assert softmax_attention(k[:, :0], k[:, :0], k[:, :0], backend=backend_name).shape == (2, 0, 1, 8)


def test_compiled_in_one_graph_equals_eager():
    inputs = [torch.randn(4, 129, 2, 8, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    compiled = torch.compile(softmax_attention, backend="aot_eager", fullgraph=True, dynamic=False)
    results = []
    for function in (softmax_attention, compiled):
        o, lse = function(*inputs, window=20, sink_tokens=1, documents=RULES["documents"]["documents"], return_lse=True)
        results.append((o, lse, *torch.autograd.grad((o + lse[..., None]).square().sum(), inputs)))
    for a, b in zip(*results):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


Q, K = torch.zeros(2, 5, 4, 8), torch.zeros(2, 5, 2, 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"backend": "flash"},
            r"backend='flash' does not exist .*auto, triton, torch, reference",
        ),
        ({"q": Q[0]}, r"expected q \(B, Tq, H, D\)"),
        ({"v": K[:, :4]}, r"expected q \(B, Tq, H, D\).*\(2, 4, 2, 8\)"),
        ({"q": Q[:1]}, "expected q"),
        ({"q": Q[:, :, :3]}, "query heads must be a multiple of key heads"),
        ({"q": Q[..., :4]}, "of equal width"),
        ({"k": K[:, :4], "v": K[:, :4]}, "5 queries but only 4 keys"),
        ({"window": -1}, "window=-1: expected an integer >= 0"),
        ({"sink_tokens": -2}, "sink_tokens=-2"),
        ({"documents": torch.zeros(2, 4)}, r"documents has shape \(2, 4\), expected \(2, 5\)"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        softmax_attention(**({"q": Q, "k": K, "v": K} | change))


def test_an_unknown_backend_is_a_backend_error():
    with pytest.raises(BackendError):
        softmax_attention(Q, K, K, backend="triton2")


def test_auto_says_once_which_backend_it_took_and_why(caplog):
    backend._announce_once.cache_clear()
    with caplog.at_level(logging.INFO, logger="zoo_kernels"):
        for _ in range(3):
            softmax_attention(Q, K, K)
        softmax_attention(Q, K, K, backend="torch")
    lines = [r.getMessage() for r in caplog.records]
    assert len(lines) == 1
    assert "softmax attention on cpu: backend=torch" in lines[0]
