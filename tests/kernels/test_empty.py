"""Arrays with nothing in them: empty outputs of the right shape and gradients of zero, in every backend and form."""

from __future__ import annotations

import pytest
import torch

from tests.tiers import in_ci
from zoo_kernels import (
    BlockLayout,
    NormalizedState,
    linear_attention,
    linear_attention_step,
    softmax_attention,
    softmax_attention_step,
)

BACKENDS = ("torch", "triton", "reference")
every_backend = pytest.mark.parametrize("backend", BACKENDS)
SHAPES = {
    "B": (0, 5, 5, 2, 1),
    "H": (2, 5, 5, 0, 0),
    "H of groups": (2, 5, 5, 0, 2),
    "T": (2, 0, 0, 2, 1),
    "Tq": (2, 0, 5, 2, 1),
}
every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())


def blocks(batch, heads):
    return BlockLayout.from_index(torch.zeros(batch, heads, 1, 1, dtype=torch.long), 16)


RULES = {
    "causal": lambda b, h, t: {},
    "window": lambda b, h, t: {"window": 3},
    "sinks": lambda b, h, t: {"window": 2, "sink_tokens": 1},
    "documents": lambda b, h, t: {"documents": torch.zeros(b, t, dtype=torch.long)},
    "layout": lambda b, h, t: {"layout": blocks(1, 1)},
    "own layout": lambda b, h, t: {"layout": blocks(b, h)},
    "packed layout": lambda b, h, t: {"layout": blocks(1, 1), "documents": torch.zeros(b, t, dtype=torch.long)},
    "bias": lambda b, h, t: {"layout": blocks(1, 1), "block_bias": torch.zeros(1, 1, 1, 1, requires_grad=True)},
    "sink logits": lambda b, h, t: {"sink_logits": torch.zeros(h, requires_grad=True)},
}


@every_backend
@every_shape
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
def test_softmax_attention(rule, shape, backend):
    batch, queries, keys, heads, groups = shape
    options = rule(batch, heads, keys)
    sizes = (queries, heads, 8), (keys, groups, 8), (keys, groups, 6)
    inputs = [torch.randn(batch, *size, requires_grad=True) for size in sizes]
    o, lse = softmax_attention(*inputs, **options, backend=backend, return_lse=True)
    assert o.shape == (batch, queries, heads, 6)
    assert lse.shape == (batch, queries, heads)
    wanted = [*inputs, *(x for x in options.values() if isinstance(x, torch.Tensor) and x.requires_grad)]
    for x, grad in zip(wanted, torch.autograd.grad(o.sum() + lse.sum(), wanted)):
        assert grad.shape == x.shape
        assert not grad.any()


@every_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_lists_without_an_entry_give_rows_without_a_key(dtype, backend):
    layout = BlockLayout.from_index(torch.full((1, 1, 2, 1), -1), 16)
    inputs = [torch.randn(1, 20, 2, 8).to(dtype).requires_grad_() for _ in range(3)]
    o, lse = softmax_attention(*inputs, layout=layout, backend=backend, return_lse=True)
    assert not o.any()
    assert (lse == -torch.inf).all()
    assert not any(grad.any() for grad in torch.autograd.grad(o.sum(), inputs))


@pytest.mark.parametrize("backend", [*(b for b in BACKENDS if b != "triton"), *in_ci("triton")])
@pytest.mark.parametrize("sink", [-torch.inf, 0.5])
def test_rows_without_a_key_beside_a_logit_of_minus_infinity(sink, backend):
    inputs = [torch.randn(1, 6, 2, 8, requires_grad=True) for _ in range(3)]
    logits = torch.tensor([sink, -torch.inf], requires_grad=True)
    ids = torch.tensor([[0, 0, 0, 1, 1, 1]])
    for rule in ({"window": 0}, {"window": 0, "sink_tokens": 1, "documents": ids}, {}):
        options = rule | {"backend": backend, "return_lse": True}
        o, lse = softmax_attention(*inputs, **options, sink_logits=logits)
        plain, plain_lse = softmax_attention(*inputs, **options)
        assert torch.equal(o[:, :, 1], plain[:, :, 1])
        assert torch.equal(lse[:, :, 1], plain_lse[:, :, 1])
        leaves = [*inputs, logits]
        total = o.sum() + lse.masked_fill(lse == -torch.inf, 0).sum()
        assert all(torch.isfinite(g).all() for g in torch.autograd.grad(total, leaves))


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_a_step_beside_a_logit_of_minus_infinity(backend):
    x = torch.randn(2, 6, 2, 8)
    lengths = torch.tensor([0, 3])
    how = {"backend": backend, "return_lse": True}
    o, lse = softmax_attention_step(x[:, 0], x, x, lengths, sink_logits=torch.full((2,), -torch.inf), **how)
    plain, plain_lse = softmax_attention_step(x[:, 0], x, x, lengths, **how)
    assert torch.equal(o, plain) and torch.equal(lse, plain_lse)
    assert not o[0].any() and (lse[0] == -torch.inf).all()


@every_backend
@pytest.mark.parametrize("shape", [(0, 5, 2), (2, 0, 2), (2, 5, 0), (0, 0, 0)], ids=["B", "T", "H", "all"])
@pytest.mark.parametrize("algorithm", ["auto", "parallel", "chunk", "scan"])
@pytest.mark.parametrize("normalize", [False, True])
def test_linear_attention(normalize, algorithm, shape, backend):
    batch, length, heads = shape
    q, k, v = (torch.randn(batch, length, heads, width, requires_grad=True) for width in (8, 8, 6))
    s, z = torch.randn(batch, heads, 8, 6, requires_grad=True), torch.randn(batch, heads, 8)
    for decay in (None, torch.zeros(heads, requires_grad=True), torch.zeros(shape, requires_grad=True)):
        o, after = linear_attention(
            q, k, v, decay, normalize=normalize, initial_state=NormalizedState(s, z) if normalize else s,
            return_state=True, documents=torch.zeros(shape[:2], dtype=torch.long), backend=backend, algorithm=algorithm,
        )  # fmt: skip
        last = after.s if isinstance(after, NormalizedState) else after
        assert o.shape == (batch, length, heads, 6)
        assert torch.equal(last, s)
        leaves = [q, k, v, s, *([] if decay is None else [decay])]
        grads = torch.autograd.grad(o.sum() + last.sum(), leaves)
        assert [g.shape for g in grads] == [x.shape for x in leaves]
        assert all((grads[3] == 1).flatten())
        assert not any(g.any() for i, g in enumerate(grads) if i != 3)


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize(("batch", "heads"), [(0, 2), (2, 0)])
def test_steps(batch, heads, backend):
    q, state, cache = torch.randn(batch, heads, 8), torch.randn(batch, heads, 8, 8), torch.randn(batch, 5, heads, 8)
    assert linear_attention_step(q, q, q, None, state, backend=backend).shape == q.shape
    lengths = torch.ones(batch, dtype=torch.long)
    o, lse = softmax_attention_step(q, cache, cache, lengths, backend=backend, return_lse=True)
    assert o.shape == q.shape
    assert lse.shape == q.shape[:2]


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_a_cache_without_a_slot_gives_rows_without_a_key(backend):
    q, cache = torch.randn(2, 2, 8), torch.randn(2, 0, 2, 8)
    o, lse = softmax_attention_step(q, cache, cache, torch.tensor([0, 0]), backend=backend, return_lse=True)
    assert not o.any() and (lse == -torch.inf).all()
