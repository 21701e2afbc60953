"""Linear attention as custom ops: registration, compilation, FLOPs, and decays that forget everything."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.tiers import in_ci
from zoo_kernels import linear_attention, linear_attention_step
from zoo_kernels.linear import torch_ops as custom

BACKENDS = ("torch", "triton")
every_backend = pytest.mark.parametrize("backend", BACKENDS)
slow_in_triton = pytest.mark.parametrize("backend", ["torch", *in_ci("triton")])  # of its interpreter, seconds each


def inputs(length=70, per_token=True, documents=True, dtype=torch.float32):
    q, k, v = (torch.randn(2, length, 2, d, dtype=dtype, requires_grad=True) for d in (8, 8, 6))
    log_decay = -torch.rand(*((2, length, 2) if per_token else (2,)))
    ids = (torch.arange(length) >= length // 3).long().expand(2, -1) if documents else None
    return q, k, v, log_decay.requires_grad_(), torch.randn(2, 2, 8, 6, requires_grad=True), ids


@slow_in_triton
@pytest.mark.parametrize("algorithm", ["auto", "parallel", "scan"])
@pytest.mark.parametrize("full", [*in_ci(False), True])
def test_opcheck(full, algorithm, backend, monkeypatch):
    monkeypatch.setattr(custom, "SHORTEST", 64)
    q, k, v, log_decay, state, ids = inputs()
    arrays = (q, k, v, log_decay, state, ids) if full else (q, k, v, None, state.detach(), None)
    torch.library.opcheck(custom.linear_forward.op, (*arrays, 0.5, algorithm, False, backend))
    saved = [None if x is None else x.detach() for x in arrays]
    output, final, starts = custom.linear_forward.op(*saved, 0.5, algorithm, False, backend)
    upstream = torch.randn_like(output), torch.randn_like(final)
    torch.library.opcheck(
        custom.linear_backward.op, (*saved, 0.5, algorithm, False, backend, starts, *upstream, full)
    )  # fmt: skip


@slow_in_triton
@pytest.mark.parametrize("decay", [None, 1, 2])
def test_opcheck_of_a_step(decay, backend):
    q, k, v = (torch.randn(2, 3, d) for d in (8, 8, 6))
    log_decay = None if decay is None else -torch.rand(*((3,) if decay == 1 else (2, 3)))
    torch.library.opcheck(
        custom.linear_step.op, (q, k, v, log_decay, torch.randn(2, 3, 8, 6), 0.5, False, backend)
    )  # fmt: skip


@slow_in_triton
@pytest.mark.parametrize("normalize", [False, True])
def test_compiles_without_a_break_and_gives_the_same(normalize, backend):
    def run(q, k, v, log_decay):
        o, _ = linear_attention(q, k.abs(), v, log_decay, normalize=normalize, backend=backend)
        return o.sin().sum()

    results = []
    for function in (run, torch.compile(run, fullgraph=True, backend="aot_eager")):
        torch.manual_seed(0)
        arrays = [x if n == 3 else x.abs() for n, x in enumerate(inputs(documents=False)[:4])]
        results.append(torch.autograd.grad(function(*arrays), arrays))
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-5) for a, b in zip(*results))


@pytest.mark.parametrize(("length", "algorithm"), [(128, "chunk"), (100, "chunk"), (64, "scan"), (50, "parallel")])
def test_flops_are_those_of_the_products(length, algorithm):
    """Counted here from the cut: 64 tokens meet 64 keys, what is left over meets itself."""
    q, k, v, log_decay, state, _ = inputs(length, documents=False)
    chunks = [64] * (length // 64) + [length % 64] if algorithm != "parallel" else [length]
    pairs = 2 * 2 * sum(c * c for c in chunks)
    states = 2 * 2 * length * 8 * 6
    with FlopCounterMode(display=False) as counter:
        o, _ = linear_attention(q, k, v, log_decay, initial_state=state, algorithm=algorithm)
    assert counter.get_total_flops() == 2 * pairs * (8 + 6) + 2 * 2 * states
    with FlopCounterMode(display=False) as counter:
        o.sum().backward()
    assert counter.get_total_flops() == 2 * pairs * (3 * 8 + 2 * 6) + 5 * 2 * states


def test_flops_of_a_step():
    q, state = torch.randn(2, 3, 8), torch.randn(2, 3, 8, 8)
    with FlopCounterMode(display=False) as counter:
        linear_attention_step(q, q, q, None, state)
    assert counter.get_total_flops() == 2 * 2 * 3 * 8 * 8


FORMS = [
    *[("torch", a) for a in ("chunk", "parallel", "scan")],
    ("triton", "chunk"),
    *in_ci(("triton", "parallel")),
    ("reference", "auto"),
]


@pytest.mark.parametrize(("backend", "algorithm"), FORMS)
def test_a_decay_of_minus_infinity_starts_afresh(backend, algorithm):
    q, k, v, _, state, _ = inputs(documents=False)
    log_decay = torch.zeros(2, 70, 2)
    log_decay[:, 33] = -torch.inf
    log_decay[0, 64] = -torch.inf
    log_decay.requires_grad_()
    options = {"backend": backend, "algorithm": algorithm}
    o, _ = linear_attention(q, k, v, log_decay, initial_state=state, **options)
    grads = torch.autograd.grad(o.square().sum(), [q, k, v, state, log_decay])
    assert all(torch.isfinite(g).all() for g in (o, *grads))
    ids = (log_decay == -torch.inf)[..., 0].long().cumsum(1)
    alone, _ = linear_attention(q, k, v, initial_state=state, documents=ids, **options)
    same = torch.autograd.grad(alone.square().sum(), [q, k, v, state])
    torch.testing.assert_close(o, alone, rtol=1e-5, atol=1e-5)
    for got, want in zip(grads, same):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
