"""Which form computes softmax attention in PyTorch: what explain() says is what runs, forward and backward."""

from __future__ import annotations

import pytest
import torch

from zoo_kernels import BlockLayout, softmax_attention
from zoo_kernels.softmax import explain
from zoo_kernels.softmax.cpu import blocked, forms, fused, sparse, strips

TOKENS = 64
DOCUMENTS = torch.arange(TOKENS).div(40, rounding_mode="floor").expand(2, -1)


@pytest.fixture
def ran(monkeypatch):
    """Names of the forms that ran; strips serve from 32 tokens on."""
    monkeypatch.setattr(forms, "SHORTEST", 32)
    seen = []
    watched = [(strips, "forward", "strips"), (strips, "backward", "strips"), (sparse, "plan", "lists")]
    watched += [(fused, "forward", "fused"), (fused, "backward", "fused")]
    watched += [(blocked, "windows", "windows"), (blocked, "ranges", "ranges")]
    for module, name, form in watched:
        original = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *x, f=original, form=form, **o: seen.append(form) or f(*x, **o))
    return seen


def draw(dtype=torch.float32, queries=TOKENS, value=8):
    shapes = (2, queries, 4, 8), (2, TOKENS, 2, 8), (2, TOKENS, 2, value)
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


def band(batches=1):
    """Each block reads itself and the one before."""
    block = torch.arange(TOKENS // 16)
    shown = torch.stack([block - 1, block], 1)
    return BlockLayout.from_index(shown.expand(batches, 1, -1, -1), 16)


def scattered():
    return BlockLayout.from_index(torch.zeros(1, 1, TOKENS // 16, 1, dtype=torch.long), 16)


BIAS = torch.zeros(1, 1, TOKENS // 16, TOKENS // 16)
CASES = {
    "window": ({}, {"window": 16}, "strips", "a window of 16 of 64 keys"),
    "window, sinks": ({}, {"window": 9, "sink_tokens": 2}, "strips", "a window of 9 of 64 keys"),
    "wide window": (
        {},
        {"window": 20},
        "windows",
        "20 of 64 keys; no strips: they take windows of 1 to 16",
    ),
    "widest window": ({}, {"window": 30}, "ranges", "not fused: a window of 30 keys"),
    "no window": ({}, {"window": 0}, "windows", "no strips: they take windows of 1 to 16"),
    "causal": ({}, {}, "fused", "all keys up to the query"),
    "window of all": ({}, {"window": TOKENS}, "fused", "all keys up to the query"),
    "fp64": ({"dtype": torch.float64}, {}, "ranges", "not fused: torch.float64"),
    "fp64, window": ({"dtype": torch.float64}, {"window": 16}, "windows", "no strips: torch.float64"),
    "fp16": ({"dtype": torch.float16}, {}, "fused", "all keys up to the query"),
    "fp16, window": ({"dtype": torch.float16}, {"window": 16}, "windows", "no strips: torch.float16"),
    "few queries": ({"queries": 5}, {}, "ranges", "not fused: 5 queries of 64 keys"),
    "few queries, window": ({"queries": 5}, {"window": 16}, "windows", "no strips: 5 queries of 64 keys"),
    "wide values": ({"value": 9}, {}, "ranges", "not fused: keys 8 and values 9 wide"),
    "documents": ({}, {"documents": DOCUMENTS}, "ranges", "not fused: packed documents"),
    "documents, window": ({}, {"documents": DOCUMENTS, "window": 16}, "windows", "no strips: packed documents"),
    "scattered": ({}, {"layout": scattered()}, "lists", "a layout; no strips: the layout has no band"),
    "lists of rows": ({}, {"layout": band(2)}, "lists", "no strips: lists of each batch row"),
    "bias": ({}, {"layout": scattered(), "block_bias": BIAS}, "lists", "no strips: a bias"),
    "documents, layout": ({}, {"layout": scattered(), "documents": DOCUMENTS}, "lists", "lists of each batch row"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_explain_says_is_what_runs(case, ran):
    arrays, rule, form, reason = CASES[case]
    inputs = draw(**arrays)
    told = explain(*inputs, **rule, backend="torch")
    assert not ran
    assert told.startswith(f"backend=torch (asked for), form={form} (") and reason in told and "\n" not in told
    o = softmax_attention(*inputs, **rule, backend="torch")
    assert ran[0] == form and len(set(ran)) == 1
    ran.clear()
    torch.autograd.grad(o.sum(), inputs)
    assert ran[0] == form and len(set(ran)) == 1


def test_a_layout_with_a_band_is_cut_into_strips(ran, monkeypatch):
    """Of 16 blocks, since a band is at most a quarter of them."""
    block = torch.arange(16)
    layout = BlockLayout.from_index(torch.stack([block - 1, block], 1)[None, None], 16)
    inputs = [torch.randn(1, 256, 2, 8) for _ in range(3)]
    assert explain(*inputs, layout=layout, backend="torch").endswith("form=strips (a layout with a band)")
    softmax_attention(*inputs, layout=layout)
    assert set(ran) == {"strips"}


def test_numbers_of_a_head_that_are_apart_keep_strips_away(ran):
    q, k, v = (x.detach().transpose(2, 3).contiguous().transpose(2, 3) for x in draw())
    assert "no strips: numbers of a head are not side by side" in explain(q, k, v, window=16)
    softmax_attention(q, k, v, window=16)
    assert ran == ["windows"]


@pytest.mark.parametrize(("rule", "form"), [({}, "ranges"), ({"window": 16}, "windows")], ids=str)
def test_a_gradient_of_the_log_sum_exp_alone_takes_tiles(rule, form, ran):
    """Which the gradient of the output cannot carry where there is none."""
    inputs = draw()
    _, lse = softmax_attention(*inputs, **rule, return_lse=True)
    ran.clear()
    torch.autograd.grad(lse.sum(), inputs[:2])
    assert set(ran) == {form}


def test_short_sequences_have_no_strips():
    told = explain(*draw(), window=16)
    assert told == (
        "backend=torch (the Triton form needs a CUDA device), "
        "form=windows (a window of 16 of 64 keys; no strips: 64 tokens are fewer than 2048)"
    )


def test_other_backends_are_explained_and_refused_alike():
    inputs = draw()
    assert explain(*inputs, backend="reference") == "backend=reference (asked for)"
    with pytest.raises(ValueError, match="backend='flash' does not exist for softmax attention"):
        explain(*inputs, backend="flash")
    with pytest.raises(ValueError, match="window=-1"):
        explain(*inputs, window=-1)
