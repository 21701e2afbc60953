"""Softmax attention's Triton kernels in Triton's interpreter: every rule, width and stride against the definition."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.tiers import in_ci

pytest.importorskip("triton")

from tests.kernels.linear_oracle import make_documents
from tests.kernels.softmax_oracle import dense, visible
from zoo_kernels import BlockLayout, softmax_attention
from zoo_kernels.launch import record
from zoo_kernels.softmax.mask import KeyRule
from zoo_kernels.softmax.triton.host import document_bounds, triton_backward, triton_forward, triton_step
from zoo_kernels.tools.aot import compile_keys

pytestmark = pytest.mark.usefixtures("poisoned")

HALF, FULL = torch.float16, torch.float32  # the interpreter's bf16 products are wrong

NAMES = ["o", "lse", "dq", "dk", "dv", "dbias"]
ONE_ROW = [[1, 20, 1, 41, 2]]


def make_layout(mask, block):
    """The blocks in which ``mask`` (B', H', Tq, Tk) has a pair, by bits where it is not just causal there."""
    batch, heads, queries, keys = mask.shape
    rows, offset = -(-keys // block), keys - queries
    square = torch.zeros(batch, heads, rows * block, rows * block, dtype=torch.bool)
    square[:, :, offset:keys, :keys] = mask
    lower = torch.ones(rows * block, rows * block, dtype=torch.bool).tril()
    lower[:offset], lower[keys:] = False, False
    parts, causal = (
        x.unflatten(-1, (rows, block)).unflatten(-3, (rows, block)).transpose(-3, -2) for x in (square, lower)
    )
    b, h, i, j = parts.any((-1, -2)).nonzero().unbind(1)
    ruled = (parts[b, h, i, j] != causal[i, j]).any((-1, -2))
    words = -(-block // 32)
    seen = torch.nn.functional.pad(parts[b, h, i, j][ruled], (0, words * 32 - block))
    bits = (seen.unflatten(-1, (words, 32)).long() << torch.arange(32)).sum(-1).to(torch.int32)
    masks = torch.where(ruled, ruled.cumsum(0) - 1, -1)
    return BlockLayout.from_pairs(block, rows, b, h, i, j, masks, bits, batches=batch, heads=heads)


def plain(q, k, v, mask, scale, bias=None):
    """Attention in the precision of its inputs, as eager code computes it; ``mask`` broadcasts to (B, H, Tq, Tk)."""
    share = q.shape[2] // k.shape[2]
    k, v = k.repeat_interleave(share, 2), v.repeat_interleave(share, 2)
    scores = torch.einsum("bthd,bjhd->bhtj", q, k) * scale
    if bias is not None:
        scores = scores + bias.to(scores.dtype)
    scores = scores.masked_fill(~mask, -torch.inf)
    empty = ~mask.any(-1, keepdim=True)
    weights = scores.masked_fill(empty, 0).softmax(-1).masked_fill(empty, 0)
    lse = scores.masked_fill(empty, 0).logsumexp(-1).masked_fill(empty[..., 0], -torch.inf)
    return torch.einsum("bhtj,bjhe->bthe", weights, v), lse.transpose(1, 2)


def draw(keys, queries=None, heads=2, groups=1, width=16, value=16, dtype=FULL, batch=1):
    shapes = (batch, queries or keys, heads, width), (batch, keys, groups, width), (batch, keys, groups, value)
    inputs = [torch.randn(shape).to(dtype) for shape in shapes]
    grad_o = torch.randn(*shapes[0][:3], value).to(dtype)
    return inputs, (grad_o, torch.randn(shapes[0][:3]))


def differentiate(function, inputs, upstream, dtype, bias=None):
    """Outputs and gradients of ``function`` in ``dtype``, with a gradient through lse where there is a key."""
    leaves = [x.to(dtype).requires_grad_() for x in inputs] + ([] if bias is None else [bias.double().requires_grad_()])
    o, lse = function(*leaves)
    total = (o * upstream[0].to(dtype)).sum() + (lse * upstream[1].to(dtype)).masked_fill(lse == -torch.inf, 0).sum()
    return o.detach(), lse.detach(), *torch.autograd.grad(total, leaves)


def kernel(inputs, upstream, rule, scale, layout=None, bias=None):
    o, lse = triton_forward(*inputs, rule, scale, layout, bias)
    grads = triton_backward(*inputs, o, lse, *upstream, rule, scale, layout, bias)
    return [x for x in (o, lse, *grads) if x is not None]


def sizes(inputs, upstream, exact, mask, scale, bias=None):
    """Of each result, for the rounding of its terms: gradients of logits are differences of numbers that may cancel."""
    q, k, v, grad_o, grad_lse = (x.double() for x in (*inputs, *upstream))
    share = q.shape[2] // k.shape[2]
    k, v = k.repeat_interleave(share, 2), v.repeat_interleave(share, 2)
    scores = torch.einsum("bthd,bjhd->bhtj", q, k) * scale + (0 if bias is None else bias)
    weights = (scores - exact[1].transpose(1, 2)[..., None]).exp().masked_fill(~mask, 0)
    values = torch.einsum("bthe,bjhe->bhtj", grad_o, v).abs()
    delta = ((grad_o * exact[0]).abs().sum(-1) + grad_lse.abs()).transpose(1, 2)
    terms = weights * (values + delta[..., None])
    dq = torch.einsum("bhtj,bjhd->bthd", terms, k.abs()) * abs(scale)
    dk = torch.einsum("bhtj,bthd->bjhd", terms, q.abs()) * abs(scale)
    dk = dk.unflatten(2, (-1, share)).sum(3)
    return [*exact[:2], dq, dk, exact[4], *([] if bias is None else [terms.sum().expand(exact[5].shape)])]


def assert_close(got, exact, eager, dtype, terms=None):
    """No worse, in any head and 64 tokens or more of it, than twice what eager code loses."""
    for name, x, want, plain_x, size in zip(NAMES, got, exact, eager, terms or exact):
        assert not x.isnan().any(), name
        assert (x == -torch.inf).equal(want == -torch.inf), name
        nothing = want == -torch.inf
        arrays = (y.double().masked_fill(nothing, 0)[..., None].flatten(3) for y in (x, want, plain_x, size))
        for part in zip(*(y.tensor_split(max(x.shape[1] // 64, 1), 1) for y in arrays)):
            error, loss = ((y - part[1]).abs().amax((0, 1, -1)) for y in (part[0], part[2]))
            allowed = 2 * (loss + torch.finfo(FULL if name == "lse" else dtype).eps * part[3].abs().amax((0, 1, -1)))
            assert (error <= allowed).all(), (name, error, allowed)


def mask_of(queries, keys, window=None, sink_tokens=0, documents=None, batch=1):
    mask = torch.zeros(batch, 1, queries, keys, dtype=torch.bool)
    for b in range(batch):
        listed = visible(queries, keys, window, sink_tokens, None if documents is None else documents[b].tolist())
        for t, read in enumerate(listed):
            mask[b, 0, t, read] = True
    return mask


def check_rule(keys, queries=None, dtype=FULL, scale=None, batch=1, lengths=None, window=None, sink_tokens=0, **shape):
    queries = queries or keys
    documents = None if lengths is None else make_documents(lengths)
    inputs, upstream = draw(keys, queries, dtype=dtype, batch=batch, **shape)
    scale = inputs[0].shape[-1] ** -0.5 if scale is None else scale
    rule = {"window": window, "sink_tokens": sink_tokens, "documents": documents}
    got = kernel(inputs, upstream, KeyRule(keys - queries, window, sink_tokens, documents), scale)
    exact = differentiate(lambda *x: dense(*x, scale=scale, **rule), inputs, upstream, torch.float64)
    mask = mask_of(queries, keys, batch=batch, **rule)
    eager = differentiate(lambda *x: plain(*x, mask, scale), inputs, upstream, dtype)
    assert_close(got, exact, eager, dtype, sizes(inputs, upstream, exact, mask, scale))
    assert [x.dtype for x in got] == [dtype, FULL, dtype, dtype, dtype]


def label(case):
    return " ".join(f"{n}={x}" for n, x in case.items())


CASES = [
    {"keys": 65, "queries": 1},
    {"keys": 100, "window": 7, "dtype": HALF, "heads": 1},
    {"keys": 65, "queries": 50, "window": 7, "heads": 1},
    {"keys": 15, "heads": 4, "groups": 2, "batch": 2},
    {"keys": 65, "window": 0, "sink_tokens": 2, "heads": 1},
    {"keys": 40, "sink_tokens": 2, "dtype": HALF},
    {"keys": 65, "lengths": ONE_ROW, "queries": 35, "window": 6, "heads": 1},
    {"keys": 65, "lengths": ONE_ROW, "window": 5, "sink_tokens": 2, "dtype": HALF},
    {"keys": 18, "width": 24, "value": 40, "dtype": HALF, "window": 5},
    {"keys": 18, "width": 256, "value": 256, "heads": 1},
]
CASES += in_ci(
    {"keys": 1},
    {"keys": 2, "dtype": HALF},
    {"keys": 63, "dtype": HALF, "heads": 1},
    {"keys": 33, "heads": 3, "groups": 3},
    {"keys": 64, "scale": 0.3, "heads": 1},
    {"keys": 129, "heads": 1, "dtype": HALF},
    {"keys": 100, "queries": 37, "heads": 3, "dtype": HALF},
    {"keys": 20, "window": 0},
    {"keys": 40, "window": 1, "heads": 1},
    {"keys": 33, "window": 33},
    {"keys": 33, "window": 1000, "dtype": HALF},
    {"keys": 127, "window": 60, "heads": 1},
    {"keys": 100, "window": 8, "sink_tokens": 3, "heads": 1},
    {"keys": 100, "queries": 30, "window": 9, "sink_tokens": 40, "dtype": HALF},
    {"keys": 65, "lengths": ONE_ROW, "heads": 1},
    {"keys": 65, "lengths": [[65], [64, 1]], "batch": 2, "dtype": HALF, "heads": 1},
    {
        "keys": 100,
        "lengths": [[17, 1, 82], [99, 1]],
        "batch": 2,
        "heads": 1,
        "window": 5,
        "sink_tokens": 2,
        "dtype": HALF,
    },
    {"keys": 65, "lengths": ONE_ROW, "queries": 50, "window": 0, "sink_tokens": 1, "heads": 1},
    {"keys": 18, "width": 1, "value": 5},
    {"keys": 18, "width": 100, "value": 32},
    {"keys": 18, "width": 80, "value": 192, "dtype": HALF},
)


@pytest.mark.parametrize("case", CASES, ids=label)
def test_equals_the_definition(case):
    check_rule(**case)


def random_layout(shape, queries, keys, block):
    """Blocks drawn at random, some cut by a token rule, one query block and one key block in no list."""
    rows = -(-keys // block)
    listed = torch.rand(*shape, rows, rows) < (0.6 if rows > 1 else 2)
    listed[..., 1:2, :] = False
    listed[..., 2:3] = False
    cut = torch.rand(*shape, rows, rows) < 0.3
    spread = [x.repeat_interleave(block, -1).repeat_interleave(block, -2) for x in (listed, cut)]
    listed, cut = (x[..., keys - queries : keys, :keys] for x in spread)
    mask = listed & (~cut | (torch.rand(cut.shape) < 0.5))
    return mask & torch.ones(keys, keys, dtype=torch.bool).tril()[keys - queries :]


LAYOUTS = [
    {"keys": 70, "block": 16},
    {"keys": 70, "queries": 3, "block": 16, "bias": (1, 1), "dtype": HALF},
    {"keys": 20, "block": 128, "bias": (1, 2)},
    *in_ci(
        {"keys": 100, "block": 32, "dtype": HALF, "heads": 2, "shape": (1, 2)},
        {"keys": 129, "block": 64, "heads": 1, "bias": (1, 1)},
        {"keys": 100, "queries": 41, "block": 32, "batch": 2, "shape": (2, 1), "bias": (1, 2)},
        {"keys": 70, "block": 32, "batch": 2, "shape": (2, 2), "bias": (2, 1), "dtype": HALF},
    ),
]


@pytest.mark.parametrize("case", LAYOUTS, ids=label)
def test_layouts_equal_the_definition(case):
    keys, block, dtype, batch = (case.get(n, x) for n, x in {"keys": 0, "block": 0, "dtype": FULL, "batch": 1}.items())
    queries, rows = case.get("queries", keys), -(-keys // block)
    mask = random_layout(case.get("shape", (1, 1)), queries, keys, block)
    bias = torch.randn(*case["bias"], rows, rows) if "bias" in case else None
    inputs, upstream = draw(keys, queries, heads=case.get("heads", 2), dtype=dtype, batch=batch)

    def spread(bias):
        return bias.repeat_interleave(block, -1).repeat_interleave(block, -2)[:, :, keys - queries : keys, :keys]

    def attention(q, k, v, bias=None):
        return plain(q, k, v, mask, 0.3, None if bias is None else spread(bias))

    got = kernel(inputs, upstream, KeyRule(keys - queries, None, 0, None), 0.3, make_layout(mask, block), bias)
    exact = differentiate(attention, inputs, upstream, torch.float64, bias)
    eager = differentiate(attention, inputs, upstream, dtype, bias)
    terms = sizes(inputs, upstream, exact, mask, 0.3, None if bias is None else spread(bias))
    assert_close(got, exact, eager, dtype, terms)
    if bias is not None:
        assert got[-1].any()
        assert not got[-1][exact[-1] == 0].any()


@pytest.mark.parametrize(("of_layout", "of_bias"), [(7, 5), *in_ci((4, 6), (6, 4), (4, 4))])
def test_layouts_and_biases_may_have_more_blocks_than_the_call_needs(of_layout, of_bias):
    """Four blocks are needed; what the bias has beyond them gets no gradient, and nothing is written elsewhere."""
    query, key = torch.ones(4, 4).tril().nonzero().unbind(1)
    layout = BlockLayout.from_pairs(16, of_layout, 0 * query, 0 * query, query, key)
    bias = torch.randn(1, 2, of_bias, of_bias)
    inputs, upstream = draw(60, heads=2)
    results = []
    for backend in ("torch", "triton"):
        given = [x.clone().requires_grad_() for x in (*inputs, bias)]
        o = softmax_attention(*given[:3], layout=layout, block_bias=given[3], backend=backend)
        results.append([o, *torch.autograd.grad(o, given, upstream[0])])
    for got, want in zip(*reversed(results)):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    assert results[1][-1][:, :, :4].any() and not results[1][-1][:, :, 4:].any()


@pytest.mark.slow
def test_lengths_and_bits_may_be_strided():
    (q, k, v), _ = draw(40, 1, 2, 1, 16, 16, FULL, 3)
    lengths = torch.tensor([[20, 1], [33, 1], [7, 1]])
    options = {"window": None, "sink_tokens": 0, "ring": False, "scale": 0.3}
    want = triton_step(q[:, 0], k, v, lengths[:, 0].contiguous(), **options)
    for got, known in zip(triton_step(q[:, 0], k, v, lengths[:, 0], **options), want):
        assert got.equal(known)
    same = triton_step(q[:, 0], k, v, torch.tensor([20, 20, 20]), **options)
    for got, known in zip(triton_step(q[:, 0], k, v, torch.tensor([20]).expand(3), **options), same):
        assert got.equal(known)
    layout = make_layout(random_layout((1, 1), 70, 70, 16), 16)
    wide = torch.zeros(len(layout.bits), *[2 * n for n in layout.bits.shape[1:]], dtype=layout.bits.dtype)
    part = wide[tuple(slice(None, None, 2) if axis else slice(None) for axis in range(wide.dim()))]
    part.copy_(layout.bits)
    strided = replace(layout, bits=part)
    inputs, upstream = draw(70, heads=2)
    rule = KeyRule(0, None, 0, None)
    assert len(layout.bits) and not part.is_contiguous()
    for got, known in zip(kernel(inputs, upstream, rule, 0.3, strided), kernel(inputs, upstream, rule, 0.3, layout)):
        assert got.equal(known)


def test_rows_without_a_key_ignore_what_comes_through_their_lse():
    inputs, (grad_o, grad_lse) = draw(20)
    grad_lse.fill_(torch.nan)  # the gradient of logaddexp(-inf, -inf)
    o, lse, *grads = kernel(inputs, (grad_o, grad_lse), KeyRule(0, 0, 0, None), 1.0)
    assert not o.any() and (lse == -torch.inf).all()
    assert not any(x.any() for x in grads)  # NaN would count as true


@pytest.mark.slow
def test_strides_do_not_matter_and_results_repeat():
    inputs, upstream = draw(18, heads=2, groups=2, width=20, value=12, batch=2)
    rule = KeyRule(0, 9, 1, None)
    want = kernel(inputs, upstream, rule, 0.2)
    heads_first = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (*inputs, *upstream)]
    width_first = [x.transpose(1, -1).contiguous().transpose(1, -1) for x in inputs]
    fused = torch.cat([x.flatten(2) for x in inputs], -1)
    cuts = fused.split([x[0, 0].numel() for x in inputs], -1)
    sliced = [part.unflatten(-1, x.shape[2:]) for part, x in zip(cuts, inputs)]
    for views, grads in ((heads_first[:3], heads_first[3:]), (width_first, upstream), (sliced, upstream)):
        for x, y in zip(kernel(views, grads, rule, 0.2), want):
            assert x.equal(y)
    ones = torch.ones(()).expand(upstream[0].shape), torch.zeros(()).expand(upstream[1].shape)
    for x, y in zip(kernel(inputs, ones, rule, 0.2), kernel(inputs, [g.contiguous() for g in ones], rule, 0.2)):
        assert x.equal(y)


def test_empty_inputs():
    for batch, queries in ((0, 3), (2, 0)):
        inputs = [torch.randn(batch, n, 2, 8) for n in (queries, 3, 3)]
        o, lse = triton_forward(*inputs, KeyRule(3 - queries, None, 0, None), 1.0, None, None)
        grads = triton_backward(*inputs, o, lse, o, lse, KeyRule(3 - queries, None, 0, None), 1.0, None, None)
        assert o.shape == inputs[0].shape
        assert all(x.shape == y.shape and not x.any() for x, y in zip(grads[:3], inputs))


def test_document_bounds():
    starts, ends = document_bounds(make_documents([[1, 3, 1], [5]]))
    assert starts.tolist() == [[0, 1, 1, 1, 4], [0] * 5]
    assert ends.tolist() == [[1, 4, 4, 4, 5], [5] * 5]


STEPS = [
    {"capacity": 70},
    {"capacity": 70, "dtype": HALF, "heads": 6, "groups": 3, "width": 20, "value": 36},
    {"capacity": 70, "window": 9, "sink_tokens": 3},
    {"capacity": 40, "window": 37, "sink_tokens": 3, "ring": True},
    *in_ci(
        {"capacity": 70, "window": 0},
        {"capacity": 70, "window": 50, "heads": 20, "dtype": HALF},
        {"capacity": 40, "heads": 80, "groups": 2},
        {"capacity": 40, "heads": 70, "dtype": HALF, "window": 20, "sink_tokens": 3, "ring": True},
        {"capacity": 40, "window": 20, "sink_tokens": 3, "ring": True, "dtype": HALF},
        {"capacity": 40, "window": 40, "ring": True},
    ),
]


@pytest.mark.parametrize("case", STEPS, ids=label)
def test_a_step_equals_the_last_query_of_each_row(case):
    case = {"window": None, "sink_tokens": 0, "ring": False, "dtype": FULL, "heads": 2, "groups": 1} | case
    capacity, window, sink_tokens, ring, dtype = (
        case[n] for n in ("capacity", "window", "sink_tokens", "ring", "dtype")
    )
    lengths = [0, 1, 33, capacity] if not ring else [0, 3, capacity + 1, 100]
    width, value = case.get("width", 16), case.get("value", 16)
    (q, k, v), _ = draw(max(lengths), 1, case["heads"], case["groups"], width, value, dtype, len(lengths))
    caches = [torch.full((len(lengths), capacity, *x.shape[2:]), torch.nan, dtype=dtype) for x in (k, v)]
    for row, length in enumerate(lengths):
        for p in range(length):
            slot = sink_tokens + (p - sink_tokens) % (capacity - sink_tokens) if ring and p >= sink_tokens else p
            caches[0][row, slot], caches[1][row, slot] = k[row, p], v[row, p]
    options = {"window": window, "sink_tokens": sink_tokens, "ring": ring, "scale": 0.3}
    o, lse = triton_step(q[:, 0], *caches, torch.tensor(lengths), **options)
    assert not o[0].any() and (lse[0] == -torch.inf).all()
    for row, n in enumerate(lengths[1:], 1):
        one = [x[row : row + 1, : x.shape[1] if x is q else n] for x in (q, k, v)]
        exact = dense(*(x.double() for x in one), window=window, sink_tokens=sink_tokens, scale=0.3)
        eager = plain(*one, mask_of(1, n, window, sink_tokens), 0.3)
        assert_close((o[row : row + 1, None], lse[row : row + 1, None]), exact, eager, dtype)


def recorded(batch, keys, queries, options, strided=False):
    (q, k, v), (grad_o, grad_lse) = draw(keys, queries, 4, 2, 24, 24, torch.bfloat16, batch)
    if strided:
        q, k, v, grad_o = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v, grad_o))
    documents = torch.zeros(batch, keys, dtype=torch.int64) if options else None
    rule = KeyRule(keys - queries, options.get("window"), options.get("sink_tokens", 0), documents)
    with record("sm_90") as launches:
        o, lse = triton_forward(q, k, v, rule, 0.1, None, None)
        triton_backward(q, k, v, o, lse, grad_o, grad_lse, rule, 0.1, None, None)
        lengths = torch.zeros(batch, dtype=torch.int64)
        triton_step(q[:, 0], k, v, lengths, window=options.get("window"), sink_tokens=0, ring=False, scale=0.1)
    return compile_keys(launches, "sm_90")


@pytest.mark.parametrize("options", [{}, {"window": 1, "sink_tokens": 1}], ids=["causal", "all"])
@pytest.mark.parametrize("strided", [False, True], ids=["packed", "heads first"])
def test_neither_batch_nor_length_compiles_again(options, strided):
    first = recorded(1, 64, 64, options, strided)
    assert len(first) == 5
    assert recorded(3, 131, 131, options, strided) == first
    assert recorded(2, 4096, 17, {n: 16 * x for n, x in options.items()}, strided) == first
