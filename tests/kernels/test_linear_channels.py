"""Linear attention with a decay per channel: every algorithm computes the recurrence, forward and backward."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.delta_oracle import Case, make_case, recurrence
from tests.kernels.linear_oracle import assert_all_close, make_documents
from zoo_kernels import NormalizedState, linear_attention, linear_attention_step
from zoo_kernels.linear import torch_ops as custom

pytestmark = pytest.mark.usefixtures("poisoned")
FORMS = [("torch", "auto"), ("torch", "parallel"), ("torch", "chunk"), ("torch", "scan"), ("reference", "auto")]
every_form = pytest.mark.parametrize(("backend", "algorithm"), FORMS, ids=[f"{b}-{a}" for b, a in FORMS])
DOCUMENTS = make_documents([[1, 30, 33, 1, 5], [69, 1]])


def run(x, **options):
    given = {n: a for n, a in x.items() if n != "state"}
    return linear_attention(**given, initial_state=x["state"], return_state=True, **options)


@every_form
@pytest.mark.parametrize("documents", [None, DOCUMENTS], ids=["none", "documents"])
def test_equals_the_recurrence(documents, backend, algorithm):
    for length in (1, 2, 33, 70):
        case = make_case(length, "plain", "channel")
        case.options = {} if documents is None else {"documents": documents[:, :length]}
        x = case.leaves()
        got = case.gradients(x, *run(x, **case.options, backend=backend, algorithm=algorithm))
        assert_all_close(got, case.expected())


@pytest.mark.parametrize("documents", [None, DOCUMENTS], ids=["none", "documents"])
@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_normalized_equals_the_recurrence(backend, documents):
    case, results = make_case(70, "plain", "channel"), []
    z = torch.rand(2, 2, 6, dtype=torch.float64, requires_grad=True)
    for ours in (False, True):
        x = case.leaves()
        q, k = x["q"].square(), x["k"].square() + 0.1
        if ours:
            o, last = linear_attention(
                q, k, x["v"], x["log_decay"], normalize=True, initial_state=NormalizedState(x["state"], z),
                return_state=True, documents=documents, backend=backend,
            )  # fmt: skip
            state, below = last.s, last.z
        else:
            ones = torch.cat([x["v"], torch.ones_like(x["v"][..., :1])], -1)
            both, last = recurrence(
                q, k, ones, x["log_decay"], torch.cat([x["state"], z[..., None]], -1), documents=documents
            )  # fmt: skip
            o, state, below = both[..., :-1] / both[..., -1:], last[..., :-1], last[..., -1]
        results.append(case.gradients(x | {"z": z}, o, state + 0.5 * below[..., None]))
    assert_all_close(results[1], results[0])


@pytest.mark.parametrize("normalize", [False, True])
def test_steps_equal_the_whole(normalize):
    x = make_case(20, "plain", "channel").inputs
    q, k = x["q"].square(), x["k"].square() + 0.1
    state = NormalizedState(x["state"].clone(), torch.rand(2, 2, 6).double()) if normalize else x["state"].clone()
    start = NormalizedState(state.s.clone(), state.z.clone()) if normalize else state.clone()
    want, last = linear_attention(
        q, k, x["v"], x["log_decay"], normalize=normalize, initial_state=start, return_state=True
    )  # fmt: skip
    for t in range(20):
        o = linear_attention_step(q[:, t], k[:, t], x["v"][:, t], x["log_decay"][:, t], state, normalize=normalize)
        torch.testing.assert_close(o, want[:, t], rtol=1e-12, atol=1e-12)
    for got, wanted in [(state.s, last.s), (state.z, last.z)] if normalize else [(state, last)]:
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


def test_equal_channels_are_one_decay_per_head():
    x = make_case(70, "plain", "token").inputs
    each = x["log_decay"][..., None].expand(x["q"].shape)
    torch.testing.assert_close(run(x), run(x | {"log_decay": each}), rtol=1e-12, atol=1e-12)


def test_what_comes_later_changes_nothing_not_one_bit():
    case = make_case(70, "plain", "channel", strength=5.0)
    later = Case({n: x.clone() for n, x in case.inputs.items()}, None, None)
    for name in ("q", "k", "v", "log_decay"):
        later.inputs[name][:, 37:] = -300
    outputs = [run(x.leaves(torch.float32))[0] for x in (case, later)]
    assert torch.equal(outputs[0][:, :37], outputs[1][:, :37])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_wide_sums_stay_in_fp32(dtype):
    x = make_case(40, "plain", "channel").leaves(dtype)
    narrow, wide = run(x)[0], run(x, wide=True)[0]
    assert wide.dtype == torch.float32 and torch.equal(narrow, wide.to(dtype))


def test_opcheck_compilation_and_flops():
    x = make_case(40, "plain", "channel").leaves(torch.float32)
    given = [x[n] for n in ("q", "k", "v", "log_decay", "state")]
    torch.library.opcheck(custom.linear_forward.op, (*given, DOCUMENTS[:, :40], 0.5, "scan", False, "torch"))
    saved = [a.detach() for a in given]
    o, last, starts = custom.linear_forward.op(*saved, None, 0.5, "auto", False, "torch")
    upstream = starts, torch.randn_like(o), torch.randn_like(last), True
    torch.library.opcheck(custom.linear_backward.op, (*saved, None, 0.5, "auto", False, "torch", *upstream))
    torch._dynamo.reset()
    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), run(x))


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_a_positive_decay_is_refused_and_its_shape_told(backend):
    x = torch.zeros(2, 5, 3, 4)
    with pytest.raises(ValueError, match=r"^log_decay goes up to 1, expected numbers <= 0"):
        linear_attention(x, x, x, x + 1, backend=backend)
    with pytest.raises(ValueError, match=r"expected \(3,\) or \(2, 5, 3\) or \(2, 5, 3, 4\)"):
        linear_attention(x, x, x, x[..., :2], backend=backend)
