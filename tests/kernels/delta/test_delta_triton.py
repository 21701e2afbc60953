"""Delta attention's Triton kernels, in the interpreter: the recurrence in fp64 is the oracle, forward and backward."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.kernels.delta.test_delta_custom import arguments
from tests.kernels.delta_oracle import DECAYS, RULES, Case, assert_contract, make_case, run
from tests.kernels.linear_oracle import assert_all_close, make_documents
from tests.tiers import in_ci
from zoo_kernels import BackendError, delta_attention, delta_attention_step
from zoo_kernels.delta import torch_ops as custom
from zoo_kernels.delta.arguments import DeltaArguments, DeltaUpstream
from zoo_kernels.launch import ARCHITECTURES, record
from zoo_kernels.tools.aot import compile_keys

pytest.importorskip("triton")
pytestmark = pytest.mark.usefixtures("poisoned")

FP32, HALF = torch.float32, torch.float16
ONE = {"batch": 1, "heads": 1}
FEW = (("beta", "token"), ("general", "channel"))
few_kinds = pytest.mark.parametrize(
    ("rule", "decay"), [*FEW, *in_ci(*((r, d) for r in RULES for d in DECAYS if (r, d) not in FEW))]
)


def close(case: Case, tolerance: float = 2e-5) -> None:
    """Equal to the recurrence within fp32 rounding, for numbers around 1."""
    assert_all_close(case.measured(FP32, backend="triton"), case.expected(), tolerance)


@few_kinds
def test_equals_the_recurrence(rule, decay):
    close(make_case(34, rule, decay, **ONE))


@pytest.mark.slow
@pytest.mark.parametrize("length", [1, 2, 15, 31, 32, 33, 63, 64, 65, 129])
@pytest.mark.parametrize(("rule", "decay"), FEW)
def test_equals_the_recurrence_at_any_length(rule, decay, length):
    close(make_case(length, rule, decay, **ONE))


@pytest.mark.parametrize("strength", [0.1, *in_ci(20.0)])
@pytest.mark.parametrize("dtype", [HALF, *in_ci(FP32, torch.bfloat16)], ids=str)
@few_kinds
def test_error_is_at_most_twice_that_of_plain_code(rule, decay, dtype, strength):
    assert_contract(make_case(40, rule, decay, **ONE, strength=strength), dtype, backend="triton")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("width", "value"), [(64, 48), (3, 5), (128, 64), (96, 192), (192, 96), (16, 256), (256, 16), (256, 256)]
)
def test_any_width(width, value):
    for decay in ("token", "channel"):
        case = make_case(34, "beta", decay, **ONE, width=width, value=value)
        if max(width, value) <= custom.DELTA.widths[FP32]:
            close(case, 1e-4)
        else:
            assert_contract(case, HALF, backend="triton")


@few_kinds
def test_documents(rule, decay):
    case = make_case(37, rule, decay, **ONE)
    case.options = {"documents": make_documents([[1, 30, 1, 3, 2]])}
    close(case)


@pytest.mark.slow
@pytest.mark.parametrize(("rule", "decay"), FEW)
def test_other_documents_change_nothing_not_one_bit(rule, decay):
    case = make_case(40, rule, decay, **ONE)
    case.options = {"documents": make_documents([[20, 17, 3]])}
    changed = Case({n: x if x is None else x.clone() for n, x in case.inputs.items()}, None, None, case.options)
    for name in ("q", "v"):
        changed.inputs[name][:, :20] *= 1e6
    outputs = [run(x.leaves(FP32), **case.options, backend="triton") for x in (case, changed)]
    assert torch.equal(outputs[0][0][:, 20:], outputs[1][0][:, 20:])
    assert torch.equal(outputs[0][1], outputs[1][1])


@pytest.mark.parametrize("at", [17, *in_ci(1, 15, 16, 31, 32, 33, 39)])
@few_kinds
def test_what_comes_later_changes_nothing_not_one_bit(rule, decay, at):
    case = make_case(40, rule, decay, **ONE, width=16, value=16, strength=5.0)
    want = run(case.leaves(FP32), backend="triton")[0]
    for name, x in case.inputs.items():
        if name != "state" and x is not None and x.dim() >= 3:
            drawn = torch.randn(x[:, at:].shape, dtype=x.dtype)
            drawn = F.normalize(drawn, dim=-1) if name in ("k", "read", "erase") else 100 * drawn
            x[:, at:] = {"log_decay": torch.full_like(drawn, -300), "beta": drawn.sigmoid()}.get(name, drawn)
    assert torch.equal(run(case.leaves(FP32), backend="triton")[0][:, :at], want[:, :at])


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_no_number_changes_no_chunk_before_its_own(bad):
    case = make_case(40, "beta", "channel", **ONE)
    want = run(case.leaves(FP32), backend="triton")[0]
    for name in ("q", "k", "v", "beta"):
        case.inputs[name][:, 35] = bad
    assert torch.equal(run(case.leaves(FP32), backend="triton")[0][:, :32], want[:, :32])


@pytest.mark.parametrize(("batch", "heads", "fold"), [(2, 1, 2), *in_ci((1, 3, 1), (2, 2, 2), (1, 2, 3))])
@pytest.mark.parametrize(("rule", "decay"), [("general", "token"), *in_ci(("beta", "channel"), ("plain", "channel"))])
def test_rows_and_heads_are_their_own_and_values_share_keys(rule, decay, batch, heads, fold):
    close(make_case(3, rule, decay, batch=batch, heads=heads, fold=fold))


@pytest.mark.slow
@pytest.mark.parametrize("cut", [1, 32, 39])
@pytest.mark.parametrize(("rule", "decay"), FEW)
def test_splitting_with_the_state_handed_over(rule, decay, cut):
    case = make_case(40, rule, decay, **ONE)
    x, outputs = case.leaves(FP32), []
    state = x["state"]
    for span in (slice(0, cut), slice(cut, None)):
        part = {n: a[:, span] if a is not None and a.dim() >= 3 and n != "state" else a for n, a in x.items()}
        o, state = run(part | {"state": state}, backend="triton")
        outputs.append(o)
    assert_all_close(case.gradients(x, torch.cat(outputs, 1), state), case.expected(), 2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("decay", DECAYS)
def test_strided_inputs_and_broadcast_gradients(decay):
    case, results = make_case(20, "beta", decay, batch=2, heads=2), []
    for strided in (False, True):
        x = case.leaves(FP32)
        view = x
        if strided:
            view = {n: a if a is None or a.dim() < 3 else a.mT.contiguous().mT for n, a in x.items()}
        o, s = run(view, backend="triton")
        (o.sum() + s.sum()).backward()  # the gradients arrive with stride 0
        results.append({n: a.grad for n, a in x.items() if a is not None})
    assert_all_close(results[1], results[0], 1e-6)


UNIT = F.normalize(torch.arange(1.0, 7.0, dtype=torch.float64), dim=0)
KEYS = {
    "equal": lambda: UNIT.expand(1, 40, 1, 6),
    "nearly equal": lambda: F.normalize(UNIT + 1e-4 * torch.randn(1, 40, 1, 6).double(), dim=-1),
    "zero": lambda: UNIT * (torch.arange(40) % 3 > 0)[:, None, None],
}


@pytest.mark.parametrize("keys", KEYS.values(), ids=KEYS.keys())
@pytest.mark.parametrize("beta", [2.0, *in_ci(0.0, 1.0)])
def test_keys_of_any_kind(beta, keys):
    close(make_case(40, "beta", "none", **ONE, keys=keys().reshape(1, 40, 1, 6).contiguous(), beta=beta))


@pytest.mark.slow
@pytest.mark.parametrize("decay", ["head", "token", "channel"])
@pytest.mark.parametrize("gate", [0.0, -5.0, -1000.0, -torch.inf, "mixed"])
def test_gates_of_any_size(gate, decay):
    case = make_case(40, "general", decay, **ONE)
    gates = torch.tensor([0.0, -1000.0, -1e-3, -20.0, 0.0, -5.0], dtype=torch.float64)
    shape = case.inputs["log_decay"].shape
    case.inputs["log_decay"] = gates[torch.randint(6, shape)] if gate == "mixed" else torch.full(shape, gate).double()
    got, want = case.measured(FP32, backend="triton"), case.expected()
    if gate == -torch.inf:  # whose gradient the definition does not have
        del got["grad log_decay"], want["grad log_decay"]
    assert_all_close(got, want, 2e-5)


@few_kinds
@pytest.mark.parametrize("dtype", [FP32, HALF], ids=str)
def test_steps_update_the_state_in_place(rule, decay, dtype):
    case = make_case(3, rule, decay, fold=2)
    case.inputs = {n: None if x is None else x.to(dtype).double() for n, x in case.inputs.items()}
    expected, x = case.expected(), case.leaves(dtype)
    state = x["state"].detach()
    for t in range(3):
        given = {n: a[:, t] if a is not None and a.dim() >= 3 else a for n, a in x.items() if n != "state"}
        o = delta_attention_step(**given, state=state, scale=0.5, backend="triton")
        assert o.dtype == dtype
        want = 0.5 * expected["output"][:, t]
        torch.testing.assert_close(o.double(), want, rtol=4 * torch.finfo(dtype).eps, atol=1e-5)
    torch.testing.assert_close(state.double(), expected["final"], rtol=1e-5, atol=1e-5)


def test_a_state_that_the_step_cannot_take_is_refused():
    q, state = torch.rand(1, 2, 4), torch.rand(1, 2, 4, 4).mT
    with pytest.raises(BackendError, match="the kernel takes contiguous float32"):
        delta_attention_step(q, q, q, None, state, backend="triton")


@pytest.mark.parametrize(
    ("dtype", "width", "message"), [(torch.float64, 8, "float64"), (FP32, 65, "65 wide"), (HALF, 257, "257 wide")]
)
def test_what_the_kernels_do_not_take_is_refused(dtype, width, message):
    x = torch.zeros(1, 3, 1, width, dtype=dtype)
    with pytest.raises(BackendError, match=message):
        delta_attention(x, x, x, backend="triton")


@pytest.mark.parametrize("decay", DECAYS)
def test_no_token_gives_no_output_and_keeps_the_state(decay):
    case = make_case(0, "beta", decay)
    got = case.measured(FP32, backend="triton")
    assert got["output"].shape == (2, 0, 2, 10)
    assert torch.equal(got["final"], case.inputs["state"].float())
    assert torch.equal(got["grad state"], case.grad_state.float())


def launches(batch, length, architecture, rule, decay):
    """What a training pass and a step would start on a GPU; nothing runs."""
    case = make_case(length, rule, decay, batch=batch, width=64, value=64)
    x = case.leaves(torch.bfloat16)
    with record(architecture) as found:
        o, state = run(x, documents=torch.zeros(batch, length, dtype=torch.long), backend="triton")
        (o.sum() + state.sum()).backward()
    return found


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("rule", "decay"), FEW)
def test_batch_and_length_compile_nothing_new(rule, decay, architecture):
    sizes = [(2, 512), (3, 1001), (1, 4097), (16, 300)]
    keys = [compile_keys(launches(b, t, architecture, rule, decay), architecture) for b, t in sizes]
    assert len(keys[0]) == 7
    assert all(k == keys[0] for k in keys[1:])


@pytest.mark.slow
@pytest.mark.parametrize(("rule", "decay"), FEW)
def test_opcheck(rule, decay):
    given = arguments(rule, decay, length=4, fold=1)._replace(backend="triton")
    torch.library.opcheck(custom.delta_forward_op.op, tuple(given))
    saved = DeltaArguments(*(x.detach() if isinstance(x, torch.Tensor) else x for x in given))
    output, final, starts = custom.delta_forward_op(saved)
    upstream = DeltaUpstream(starts, torch.ones_like(output), torch.ones_like(final), True)
    torch.library.opcheck(custom.delta_backward_op.op, (*saved, *upstream))


@pytest.mark.slow
def test_compiles_without_a_break_and_gives_the_same():
    torch._dynamo.reset()
    case, results = make_case(5, "beta", "token", **ONE), []
    for function in (run, torch.compile(run, fullgraph=True, backend="aot_eager", dynamic=False)):
        x = case.leaves(FP32)
        results.append(case.gradients(x, *function(x, backend="triton")))
    assert_all_close(results[1], results[0], 1e-6)
