"""Softmax attention as custom ops: opcheck, compilation, FLOPs, and the ring cache of a step."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.kernels.linear_oracle import make_documents
from tests.kernels.softmax_oracle import dense, visible
from tests.tiers import in_ci, named
from zoo_kernels import BlockLayout, softmax_attention, softmax_attention_step
from zoo_kernels.softmax import ring_slots
from zoo_kernels.softmax.torch_ops import softmax_backward, softmax_forward, softmax_step

DOCUMENTS = make_documents([[1, 20, 24], [45]])


def draw(queries=45, keys=45, heads=4, groups=2, width=8, value=8, dtype=torch.float64):
    shapes = (2, queries, heads, width), (2, keys, groups, width), (2, keys, groups, value)
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


def layout(heads=1, blocks=3):
    index = torch.randint(-1, blocks, (1, heads, blocks, 2))
    bits = torch.randint(-(2**31), 2**31 - 1, (2, 16, 1)).int()
    return BlockLayout.from_index(index, 16, torch.randint(-1, 2, index.shape), bits)


def cases():
    lists, bias = layout(4), torch.randn(1, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    return {
        "causal": (None, None, [], 0, None, 0),
        "window": (None, None, [], 0, 5, 2),
        "documents": (DOCUMENTS, None, [], 0, 5, 2),
        "layout": (None, None, lists.tensors(), 16, None, 0),
        "bias": (None, bias, lists.tensors(), 16, None, 0),
        "packed bias": (DOCUMENTS, bias, lists.packed(DOCUMENTS).tensors(), 16, None, 0),
    }


IN_TRITON = ("documents", "bias")  # half a minute each in the interpreter
CHECKED = [("fused", "torch"), ("packed bias", "torch")]
CHECKED += in_ci(*((n, "torch") for n in cases() if n != "packed bias"), *((n, "triton") for n in IN_TRITON))


@pytest.mark.parametrize(("name", "backend"), CHECKED)
def test_opcheck(name, backend):
    """The fused form takes fp32, fp64 takes the others."""
    if backend == "triton":
        pytest.importorskip("triton")
    dtype = torch.float64 if backend == "torch" and name != "fused" else torch.float32
    documents, bias, lists, *how = cases()["causal" if name == "fused" else name]
    bias = None if bias is None else bias.detach().to(dtype).requires_grad_()
    arguments = *draw(dtype=dtype), documents, bias, lists, *how, 0.3, backend
    torch.library.opcheck(softmax_forward.op, arguments)
    q, k, v = (x.detach() for x in arguments[:3])
    bias = None if bias is None else bias.detach()
    output, lse = softmax_forward.op(q, k, v, documents, bias, *arguments[5:])
    for grad_lse in (None, torch.randn_like(lse)):
        given = q, k, v, documents, bias, *arguments[5:]
        upstream = output, lse, torch.randn_like(output), grad_lse, bias is not None
        torch.library.opcheck(softmax_backward.op, (*given, *upstream))


@pytest.mark.parametrize("ring", [False, True])
def test_opcheck_of_a_step(ring):
    q, k, v = (x.detach() for x in draw(queries=1))
    arguments = q[:, 0], k, v, torch.tensor([3, 60]), 7, 2, ring, 0.3, "torch"
    torch.library.opcheck(softmax_step.op, arguments)


RULES = {
    "causal": {},
    "window": {"window": 20, "sink_tokens": 1},
    "documents": {"documents": DOCUMENTS},
    "layout": {"layout": layout(4)},
    "packed layout": {"layout": layout(1), "documents": DOCUMENTS},
    "packed bias": {"layout": layout(4), "documents": DOCUMENTS, "block_bias": torch.randn(1, 4, 3, 3)},
}


@pytest.mark.parametrize("rule", named(RULES, "documents", "packed bias"))
def test_compiled_in_one_graph_equals_eager(rule):
    return_lse = "documents" not in rule
    inputs = draw()
    torch._dynamo.reset()
    compiled = torch.compile(softmax_attention, backend="aot_eager", fullgraph=True, dynamic=False)
    results = []
    for function in (softmax_attention, compiled):
        made = function(*inputs, **rule, return_lse=return_lse)
        o, lse = made if return_lse else (made, torch.zeros(made.shape[:3]))
        total = o.square().sum() + lse.exp().sum()
        results.append((o, lse, *torch.autograd.grad(total, inputs)))
    for a, b in zip(*results):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def count(function):
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def assert_counts(inputs, pairs, **rule):
    """``pairs`` of all heads; two products forward, five backward."""
    width, value = inputs[0].shape[-1], inputs[2].shape[-1]
    assert count(lambda: softmax_attention(*(x.detach() for x in inputs), **rule)) == 2 * pairs * (width + value)
    made = softmax_attention(*inputs, **rule)
    backward = count(lambda: torch.autograd.grad(made.sum(), inputs))
    assert backward == 2 * pairs * (3 * width + 2 * value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("queries", [45, 7])
@pytest.mark.parametrize(
    "rule", [{}, {"window": 6}, {"window": 6, "sink_tokens": 3}, {"window": 44, "sink_tokens": 9}], ids=str
)
def test_flops_are_those_of_the_pairs_that_the_rule_shows(rule, queries, dtype):
    pairs = sum(map(len, visible(queries, 45, **rule)))
    assert_counts(draw(queries=queries, value=6, dtype=dtype), 2 * 4 * pairs, **rule)
    assert_counts(draw(queries=queries, dtype=dtype), 2 * 4 * pairs, **rule)


@pytest.mark.parametrize("heads", [1, 4])
def test_flops_are_those_of_the_listed_blocks(heads):
    shown = torch.rand(1, heads, 3, 3) < 0.5
    pairs = int(shown.tril().sum()) * (4 // heads) * 2 * 16 * 16
    assert_counts(draw(value=6), pairs, layout=BlockLayout.from_blocks(shown, 16))


def test_flops_of_packed_documents_are_those_of_their_blocks():
    everything = BlockLayout.from_blocks(torch.ones(1, 1, 3, 3, dtype=torch.bool), 16)
    documents = torch.tensor([[0] * 16 + [1] * 29, [0] * 45])
    assert_counts(draw(), 4 * (1 + 3 + 6) * 16 * 16, layout=everything, documents=documents)


def test_a_hidden_key_block_is_never_read():
    q, k, v = (x.detach() for x in draw())
    shown = torch.ones(1, 1, 3, 3, dtype=torch.bool).tril()
    shown[..., 2, 1], shown[..., 1, 1] = False, False
    k[:, 16:32], v[:, 16:32] = torch.nan, torch.nan
    inputs = [x.requires_grad_() for x in (q, k, v)]
    o = softmax_attention(*inputs, layout=BlockLayout.from_blocks(shown, 16))
    assert torch.isfinite(o).all()
    for grad in torch.autograd.grad(o.sum(), inputs):
        assert torch.isfinite(grad).all()


def filled_ring(k, lengths, capacity, sink_tokens):
    """Cache of each row after its tokens were written one after another."""
    cache = torch.full((len(k), capacity, *k.shape[2:]), 1e3, dtype=k.dtype)
    for row, n in enumerate(lengths.tolist()):
        for t in range(n):
            cache[row, ring_slots(torch.tensor(t), capacity, sink_tokens)] = k[row, t]
    return cache


@pytest.mark.parametrize(("window", "sink_tokens", "capacity"), [(4, 0, 4), (4, 0, 7), (5, 3, 8), (1, 2, 9), (0, 2, 3)])
@pytest.mark.parametrize("logits", [None, torch.tensor([0.5, -1.0, 2.0, 0.0], dtype=torch.float64)], ids=["", "logits"])
def test_a_step_over_a_ring_equals_the_last_query_of_each_row(window, sink_tokens, capacity, logits):
    lengths = torch.tensor([1, 2, 7, 8, 9, 30])
    q = torch.randn(6, 4, 8, dtype=torch.float64)
    k, v = (torch.randn(6, 30, 2, 8, dtype=torch.float64) for _ in range(2))
    rule = {"window": window, "sink_tokens": sink_tokens, "sink_logits": logits}
    caches = [filled_ring(x, lengths, capacity, sink_tokens) for x in (k, v)]
    o = softmax_attention_step(q, *caches, lengths, **rule, ring=True)
    for row, n in enumerate(lengths):
        part = slice(row, row + 1)
        alone, _ = dense(q[part, None], k[part, :n], v[part, :n], **rule)
        torch.testing.assert_close(o[part], alone[:, 0], rtol=1e-12, atol=1e-12)


def test_slots_of_a_ring():
    assert ring_slots(torch.arange(10), 6, 2).tolist() == [0, 1, 2, 3, 4, 5, 2, 3, 4, 5]
    assert ring_slots(torch.arange(7), 3).tolist() == [0, 1, 2, 0, 1, 2, 0]
    with pytest.raises(ValueError, match="2 slots has no room beside sink_tokens=2"):
        ring_slots(torch.arange(3), 2, 2)


def test_a_compiled_step():
    q, k, v = (x.detach() for x in draw(queries=1))
    compiled = torch.compile(softmax_attention_step, backend="aot_eager", fullgraph=True)
    lengths = torch.tensor([9, 45])
    torch.testing.assert_close(
        compiled(q[:, 0], k, v, lengths, window=6), softmax_attention_step(q[:, 0], k, v, lengths, window=6)
    )


def test_flops_of_a_step():
    q, k, v = (x.detach() for x in draw(queries=1, value=6))
    lengths = torch.tensor([9, 45])
    assert count(lambda: softmax_attention_step(q[:, 0], k, v, lengths)) == 2 * 2 * 4 * 45 * 14
    assert count(lambda: softmax_attention_step(q[:, 0], k, v, lengths, window=5, sink_tokens=1)) == 2 * 2 * 4 * 6 * 14


STEP = {"q": torch.zeros(2, 4, 8), "k_cache": torch.zeros(2, 6, 2, 8), "v_cache": torch.zeros(2, 6, 2, 8)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.zeros(2, 1, 4, 8)}, r"expected q \(B, H, D\)"),
        ({"q": torch.zeros(2, 3, 8)}, "a multiple of key heads"),
        ({"lengths": torch.ones(3).long()}, r"lengths \(B,\), got .*\(3,\)"),
        ({"window": -1}, "window=-1"),
        ({"ring": True}, "a ring of 6 slots with sink_tokens=0 cannot serve window=None"),
        ({"ring": True, "window": 5, "sink_tokens": 2}, "6 slots with sink_tokens=2 cannot serve window=5"),
        ({"backend": "flash"}, "backend='flash' does not exist"),
    ],
)
def test_a_step_refuses_by_name_what_does_not_fit(change, message):
    with pytest.raises(ValueError, match=message):
        softmax_attention_step(**(STEP | {"lengths": torch.ones(2).long()} | change))
