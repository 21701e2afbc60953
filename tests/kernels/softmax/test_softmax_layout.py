"""Softmax attention over block layouts: both backends compute the definition, forward and backward, in fp64."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.linear_oracle import make_documents
from tests.kernels.softmax_oracle import Pattern, sparse
from zoo_kernels import BlockLayout, softmax_attention
from zoo_kernels.softmax.cpu import fused, tiles

pytestmark = pytest.mark.usefixtures("poisoned")
both = pytest.mark.parametrize("backend", ["torch", "reference"])

DOCUMENTS = make_documents([[1, 33, 1, 35], [60, 9, 1]])
shapes = pytest.mark.parametrize(("batches", "lists", "heads", "groups"), [(1, 1, 4, 2), (2, 4, 4, 2), (1, 6, 6, 1)])
packing = pytest.mark.parametrize("documents", [None, DOCUMENTS], ids=["one", "packed"])


def pattern(batches=1, lists=1, blocks=5, listed=4, ruled=True):
    """Random lists with equal ones, lists above the diagonal, empty lists and rules."""
    index = torch.randint(-1, blocks, (batches, lists, blocks, listed))
    index[:, 0, 1] = -1
    if not ruled:
        return Pattern(16, index)
    return Pattern(16, index, torch.randint(-1, 3, index.shape), torch.rand(3, 16, 16) < 0.6)


def draw(queries=70, keys=70, heads=4, groups=2, width=8, value=6):
    shapes = (2, queries, heads, width), (2, keys, groups, width), (2, keys, groups, value)
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


def make_bias(rows, heads, blocks=5):
    return torch.randn(rows, heads, blocks, blocks, dtype=torch.float64, requires_grad=True)


def gradients(function, inputs, rule, bias=None, **options):
    """Output, log-sum-exp and all gradients, through both."""
    o, lse = function(*inputs, **rule, block_bias=bias, **options)
    torch.manual_seed(1)
    total = (o * torch.randn(o.shape, dtype=o.dtype)).sum()
    total = total + (lse * torch.randn(lse.shape, dtype=o.dtype)).masked_fill(lse == -torch.inf, 0).sum()
    leaves = inputs if bias is None else [*inputs, bias]
    return o.detach(), lse.detach(), *torch.autograd.grad(total, leaves)


def assert_same(got, want, tolerance=1e-11):
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def compare(inputs, shown, bias=None, documents=None, **options):
    rule = {"documents": documents}
    got = gradients(softmax_attention, inputs, rule | {"layout": shown.layout()}, bias, return_lse=True, **options)
    assert_same(got, gradients(sparse, inputs, rule | {"pattern": shown}, bias))


@both
@packing
@shapes
@pytest.mark.parametrize("ruled", [False, True], ids=["plain", "bits"])
def test_equals_the_definition(batches, lists, heads, groups, documents, ruled, backend):
    inputs = draw(heads=heads, groups=groups)
    compare(inputs, pattern(batches, lists, ruled=ruled), documents=documents, backend=backend)


@both
@packing
@shapes
@pytest.mark.parametrize("own", [False, True], ids=["shared bias", "own bias"])
def test_a_bias_of_blocks_and_its_gradient(batches, lists, heads, groups, documents, own, backend):
    bias = make_bias(2 if own else 1, heads if own else 1)
    compare(draw(heads=heads, groups=groups), pattern(batches, lists), bias, documents, backend=backend)


@both
@packing
@pytest.mark.parametrize("queries", [1, 5, 16, 37])
def test_fewer_queries_than_keys_are_the_last_ones(queries, documents, backend):
    inputs = draw(queries=queries)
    compare(inputs, pattern(lists=4), make_bias(1, 4), documents, backend=backend)


@pytest.mark.parametrize("elements", [1, 3000, 20000])
@packing
def test_any_size_of_tiles(elements, documents, monkeypatch):
    monkeypatch.setattr(tiles, "ELEMENTS", elements)
    compare(draw(), pattern(lists=4), make_bias(2, 1), documents, backend="torch")


FUSED = {
    "per head": lambda: {"layout": pattern(lists=4).layout()},
    "shared": lambda: {"layout": pattern(lists=1, ruled=False).layout()},
    "documents": lambda: {"layout": pattern(lists=4).layout(), "documents": DOCUMENTS},
    "biased": lambda: {"layout": pattern(lists=4).layout(), "block_bias": make_bias(2, 4).detach()},
    "whole": lambda: {"layout": everything(5)},
    "window": lambda: {"window": 9},
    "window, sinks": lambda: {"window": 9, "sink_tokens": 2},
    "window, documents": lambda: {"window": 9, "documents": DOCUMENTS},
    "documents alone": lambda: {"documents": DOCUMENTS},
    "long window": lambda: {"window": 60},
}


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("name", FUSED)
def test_tiles_of_the_fused_attention_equal_plain_products(name, groups, monkeypatch):
    """It computes in fp32 only; fp64 takes the products that the other tests compare with the definition."""
    calls = []
    for function in (fused.fused_forward, fused.fused_backward):
        monkeypatch.setattr(tiles, function.__name__, lambda *x, f=function: calls.append(f) or f(*x))
    rule, inputs = FUSED[name](), draw(groups=groups, value=8)
    weight, results = torch.randn(inputs[0].shape, dtype=torch.float64), []
    for dtype in (torch.float64, torch.float32):
        given = [x.detach().to(dtype).requires_grad_() for x in inputs]
        o = softmax_attention(*given, **rule)
        results.append([o.detach(), *torch.autograd.grad((o * weight.to(dtype)).sum(), given)])
        assert bool(calls) == (dtype == torch.float32)
    for want, got in zip(*results):
        torch.testing.assert_close(got.double(), want, rtol=2e-5, atol=2e-5)
    assert len(set(calls)) == 2


@pytest.mark.parametrize("length", [1, 15, 16, 17, 64, 79, 80])
def test_any_length(length):
    compare(draw(queries=length, keys=length), pattern(lists=4), backend="torch")


@both
@pytest.mark.parametrize("block", [16, 32, 64, 128])
def test_any_block(block, backend):
    index = torch.randint(-1, 3, (1, 2, 3, 3))
    shown = Pattern(block, index, torch.randint(-1, 2, index.shape), torch.rand(2, block, block) < 0.3)
    compare(draw(queries=2 * block + 9, keys=2 * block + 9, heads=2, groups=1), shown, backend=backend)


def everything(blocks):
    return BlockLayout.from_blocks(torch.ones(1, 1, blocks, blocks, dtype=torch.bool), 16)


@both
@packing
def test_all_blocks_are_causal_attention(documents, backend):
    inputs = draw()
    got = gradients(softmax_attention, inputs, {"layout": everything(5), "documents": documents}, None, return_lse=True)
    rule = {"documents": documents, "return_lse": True}
    assert_same(got, gradients(softmax_attention, inputs, rule, None, backend=backend))


@both
@pytest.mark.parametrize("lists", [1, 4])
@pytest.mark.parametrize("biased", [False, True])
def test_packed_documents_equal_each_alone(lists, biased, backend):
    lengths = [[1, 17, 1, 1, 16, 34], [64, 1, 5]]
    documents = make_documents(lengths)
    layout, inputs = pattern(lists=lists).layout(), draw()
    bias = make_bias(1, lists).detach() if biased else None
    options = {"layout": layout, "block_bias": bias, "backend": backend}
    packed = softmax_attention(*inputs, **options, documents=documents)
    packed = packed.detach(), *torch.autograd.grad(packed.square().sum(), inputs)
    for row, of_row in enumerate(lengths):
        for start, n in zip([0, *torch.tensor(of_row).cumsum(0).tolist()], of_row):
            part = [x[row : row + 1, start : start + n].detach().requires_grad_() for x in inputs]
            o = softmax_attention(*part, **options)
            alone = o.detach(), *torch.autograd.grad(o.square().sum(), part)
            assert_same([x[row : row + 1, start : start + n] for x in packed], alone)


@both
def test_rows_without_a_key_give_zero_and_no_gradient(backend):
    inputs, bias = draw(), make_bias(1, 1)
    layout = BlockLayout.from_blocks(torch.zeros(1, 1, 5, 5, dtype=torch.bool), 16)
    o, lse = softmax_attention(*inputs, layout=layout, block_bias=bias, backend=backend, return_lse=True)
    assert not o.any()
    assert (lse == -torch.inf).all()
    for grad in torch.autograd.grad(o.sum(), [*inputs, bias]):
        assert not grad.any()  # NaN would count as true


@both
def test_sink_logits_go_with_a_layout(backend):
    inputs, shown, logits = draw(), pattern(lists=4), torch.randn(4, dtype=torch.float64)
    o = softmax_attention(*inputs, layout=shown.layout(), sink_logits=logits, backend=backend)
    plain, lse = sparse(*inputs, shown)
    torch.testing.assert_close(o, plain * torch.sigmoid(lse - logits)[..., None], rtol=1e-11, atol=1e-11)


@both
def test_strided_inputs_and_broadcast_gradients(backend):
    inputs, shown = draw(), pattern(lists=4)
    views = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in inputs]
    o = softmax_attention(*views, layout=shown.layout(), backend=backend)
    want = torch.autograd.grad(sparse(*inputs, shown)[0].sum(), inputs)
    assert_same(torch.autograd.grad(o.sum(), inputs), want)


@both
@pytest.mark.parametrize("documents", [None, pytest.param(DOCUMENTS, marks=pytest.mark.slow)], ids=["one", "packed"])
def test_gradients_equal_finite_differences(documents, backend):
    documents = None if documents is None else make_documents([[1, 10, 9]])
    q, k, v = (torch.randn(1, 20, n, 2, dtype=torch.float64, requires_grad=True) for n in (2, 1, 1))
    bias, layout = make_bias(1, 2, 2), pattern(lists=2, blocks=2).layout()

    def call(q, k, v, bias):
        o, lse = softmax_attention(
            q, k, v, layout=layout, block_bias=bias, documents=documents, backend=backend, return_lse=True
        )
        return o, lse.masked_fill(lse == -torch.inf, 0)

    assert torch.autograd.gradcheck(call, (q, k, v, bias))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision(dtype):
    inputs, shown = draw(), pattern(lists=4)
    exact = softmax_attention(*inputs, layout=shown.layout())
    low = [x.detach().to(dtype) for x in inputs]
    base = sparse(*low, shown)[0]
    o, lse = softmax_attention(*low, layout=shown.layout(), return_lse=True)
    assert (o.dtype, lse.dtype) == (dtype, torch.float32)
    allowed = 2 * ((base - exact).abs().max() + torch.finfo(dtype).eps * exact.abs().max())
    assert (o - exact).abs().max() <= allowed


Q, K = torch.zeros(2, 40, 4, 8), torch.zeros(2, 40, 2, 8)
LAYOUT = everything(3)
BIAS = torch.zeros(1, 1, 3, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layout": LAYOUT, "window": 3}, "window=3 and sink_tokens=0 do not go with a layout"),
        ({"layout": LAYOUT, "sink_tokens": 1}, "sink_tokens=1 do not go with a layout"),
        ({"layout": everything(2)}, r"of 1 rows, 1 heads, 2 blocks, expected 1 or 2, 1 or 4, at least 3"),
        ({"layout": pattern(batches=3).layout()}, "of 3 rows"),
        ({"layout": pattern(lists=2).layout()}, "of 1 rows, 2 heads"),
        ({"block_bias": BIAS}, "block_bias is added to .* a layout: give one"),
        ({"layout": LAYOUT, "block_bias": BIAS[0]}, r"block_bias has shape \(1, 3, 3\), expected"),
        ({"layout": LAYOUT, "block_bias": BIAS[:, :, :2]}, r"\(1, 1, 2, 3\), expected \(1 or 2, 1 or 4, 3, 3\)"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        softmax_attention(**({"q": Q, "k": K, "v": K} | change))


def test_short_lists_do_not_read_the_first_block_as_padding():
    """Lists of four and of three blocks share a tile."""
    query = torch.arange(12)
    index = query[:, None] - torch.arange(4)
    index = torch.where((torch.arange(4) == 3) & (query[:, None] % 2 == 0), -1, index).clamp(min=-1)
    q, k, v = draw(queries=192, keys=192)
    with torch.no_grad():
        k[:, :16] = v[:, :16] = torch.nan
    o = softmax_attention(q, k, v, layout=BlockLayout.from_index(index[None, None], 16), backend="torch")
    assert o[:, 64:].isfinite().all() and o[:, :16].isnan().all()
    for grad in torch.autograd.grad(o[:, 64:].sum(), [q, k, v]):
        assert grad[:, 64:].isfinite().all()
