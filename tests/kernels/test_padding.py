"""What lies behind a row's length may be anything, and what is not finite stays in its row."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.linear_oracle import make_documents
from zoo_kernels import BlockLayout, linear_attention, softmax_attention, softmax_attention_step

FILLS = (torch.nan, torch.inf, -torch.inf, 3e38)
RULES = {"all": {}, "window": {"window": 4}, "sinks": {"window": 3, "sink_tokens": 2}}


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
@pytest.mark.parametrize("fill", FILLS)
def test_a_step_takes_any_padding(fill, rule):
    for dtype, value in ((torch.float32, 8), (torch.float32, 6), (torch.float16, 8)):
        check_step("torch", torch.tensor([0, 1, 7, 30]), fill, rule, dtype, value)


def test_a_step_in_triton_takes_any_padding():
    pytest.importorskip("triton")
    check_step("triton", torch.tensor([0, 7]), torch.nan, RULES["sinks"], torch.float32, 8)


def check_step(backend, lengths, fill, rule, dtype, value):
    rows = len(lengths)
    q, k = torch.randn(rows, 4, 8).to(dtype), torch.randn(rows, 30, 2, 8).to(dtype)
    v = torch.randn(rows, 30, 2, value).to(dtype)
    dirty = [x.clone() for x in (k, v)]
    for x in dirty:
        for row, n in enumerate(lengths):
            x[row, n:] = fill
    how = rule | {"backend": backend, "return_lse": True}
    want, got = softmax_attention_step(q, k, v, lengths, **how), softmax_attention_step(q, *dirty, lengths, **how)
    for a, b in zip(got, want):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_a_ring_takes_any_slot_that_was_not_written():
    q, k = torch.randn(1, 2, 8), torch.randn(1, 6, 2, 8)
    dirty = k.clone()
    dirty[:, 3:] = torch.nan
    options = {"window": 4, "sink_tokens": 2, "ring": True}
    got = softmax_attention_step(q, dirty, dirty, torch.tensor([3]), **options)
    torch.testing.assert_close(got, softmax_attention_step(q, k, k, torch.tensor([3]), **options))


FORMS = {
    "causal": {},
    "window": {"window": 5, "sink_tokens": 1},
    "documents": {"documents": make_documents([[20, 20], [7, 33]])},
    "layout": {"layout": BlockLayout.from_index(torch.tensor([[[[0, -1], [0, 1], [0, 2]]]]), 16)},
}


@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_nan_stays_in_its_row(form, backend):
    x = torch.randn(2, 40, 2, 8)
    dirty = x.clone()
    dirty[0, 11] = torch.nan
    torch.testing.assert_close(
        *(softmax_attention(y, y, y, **form, backend=backend)[1] for y in (x, dirty)), rtol=0, atol=0
    )
    if form.keys() <= {"documents"}:
        torch.testing.assert_close(
            *(linear_attention(y, y, y, **form, backend=backend)[0][1] for y in (x, dirty)), rtol=0, atol=0
        )
