"""Delta attention: every backend computes the recurrence, forward and backward, in fp64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.kernels.delta_oracle import DECAYS, RULES, Case, make_case, run
from tests.kernels.linear_oracle import assert_all_close, make_documents
from zoo_kernels import chunks, delta_attention, delta_attention_step

pytestmark = pytest.mark.usefixtures("poisoned")

every_backend = pytest.mark.parametrize("backend", ["torch", "reference"])
every_rule = pytest.mark.parametrize("rule", RULES)
every_decay = pytest.mark.parametrize("decay", DECAYS)


@every_backend
@every_rule
@every_decay
def test_equals_the_recurrence_at_any_length(rule, decay, backend):
    for length in (1, 2, 5, 31, 32, 33, 65):
        case = make_case(length, rule, decay, batch=1)
        assert_all_close(case.measured(backend=backend), case.expected())


@every_rule
@every_decay
def test_equals_the_recurrence_in_several_segments_of_rows(rule, decay, monkeypatch):
    monkeypatch.setattr(chunks, "CACHE_ELEMENTS", 1)
    case = make_case(200, rule, decay)
    assert_all_close(case.measured(), case.expected())


@every_rule
@pytest.mark.parametrize("decay", ["token", "channel"])
def test_equals_the_recurrence_over_a_thousand_tokens(rule, decay):
    case = make_case(1000, rule, decay, batch=1, heads=1)
    assert_all_close(case.measured(), case.expected())


@every_backend
@every_rule
@every_decay
def test_value_heads_share_keys(rule, decay, backend):
    case = make_case(40, rule, decay, fold=3)
    assert_all_close(case.measured(backend=backend), case.expected())


@every_rule
def test_reads_and_erases_may_be_of_key_or_value_heads(rule):
    case = make_case(40, "general", "channel", fold=2)
    case.inputs["read"], case.inputs["erase"] = torch.randn(2, 40, 4, 6).double() / 3, torch.randn(2, 40, 2, 6).double()
    assert_all_close(case.measured(), case.expected())


@pytest.mark.parametrize("decay", ["token", "channel"])
@pytest.mark.parametrize(
    ("width", "value"), [(64, 96), (96, 192), (128, 64), (192, 128), (256, 16), (16, 256), (256, 256), (1, 1), (5, 3)]
)
def test_equals_the_recurrence_at_any_width(width, value, decay):
    case = make_case(40, "beta", decay, batch=1, heads=1, width=width, value=value)
    assert_all_close(case.measured(), case.expected())


@every_backend
@every_rule
@every_decay
def test_documents_of_any_length_equal_each_alone(rule, decay, backend):
    lengths = [1, 30, 1, 32, 3, 33, 1]
    case = make_case(sum(lengths), rule, decay, batch=1)
    case.options = {"documents": make_documents([lengths])}
    packed, start = case.measured(backend=backend), 0
    assert_all_close(packed, case.expected())
    of_tokens = [n for n, x in case.inputs.items() if x is not None and x.dim() >= 3 and n != "state"]
    for i, n in enumerate(lengths):
        span, last = slice(start, start + n), i == len(lengths) - 1
        inputs = case.inputs | {name: case.inputs[name][:, span] for name in of_tokens}
        inputs["state"] = inputs["state"] * (i == 0)
        alone = Case(inputs, case.grad_output[:, span], case.grad_state * last).measured(backend=backend)
        for name in ("output", *(f"grad {x}" for x in of_tokens)):
            got, want = packed[name][:, span], alone[name]
            if name == "grad log_decay" and i > 0 and decay == "channel":
                assert not got[:, 0].any()  # what a document begins with has nothing to decay
            torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
        start += n


@every_rule
@every_decay
def test_other_documents_change_nothing_not_one_bit(rule, decay):
    case = make_case(70, rule, decay, batch=1)
    case.options = {"documents": make_documents([[20, 33, 17]])}
    changed = Case({n: x if x is None else x.clone() for n, x in case.inputs.items()}, None, None, case.options)
    for name in ("q", "v"):  # such keys would erase more than there is, over and over, until it overflows
        changed.inputs[name][:, :20] *= 1e6
    for dtype in (torch.float64, torch.float32):
        outputs = [run(x.leaves(dtype), **case.options) for x in (case, changed)]
        assert torch.equal(outputs[0][0][:, 20:], outputs[1][0][:, 20:])
        assert torch.equal(outputs[0][1], outputs[1][1])


@every_rule
@every_decay
def test_what_comes_later_changes_nothing_not_one_bit(rule, decay):
    torch.manual_seed(1)
    case = make_case(100, rule, decay, width=16, value=16, strength=5.0)
    for at in (1, 15, 16, 17, 31, 32, 50, 63, 64, 99):
        later = Case({n: x if x is None else x.clone() for n, x in case.inputs.items()}, None, None)
        for name, x in later.inputs.items():
            if name != "state" and x is not None and x.dim() >= 3:
                drawn = torch.randn(x[:, at:].shape, dtype=x.dtype)
                drawn = F.normalize(drawn, dim=-1) if name in ("k", "read", "erase") else 100 * drawn
                x[:, at:] = {"log_decay": torch.full_like(drawn, -300), "beta": drawn.sigmoid()}.get(name, drawn)
        outputs = [run(x.leaves(torch.float32))[0] for x in (case, later)]
        assert torch.equal(outputs[0][:, :at], outputs[1][:, :at]), at


@every_backend
@every_rule
@every_decay
def test_splitting_anywhere_with_the_state_handed_over_equals_the_whole(rule, decay, backend):
    case = make_case(70, rule, decay, batch=1)
    expected = case.expected()
    for cut in (0, 1, 2, 31, 32, 33, 64, 69, 70):
        x, outputs = case.leaves(), []
        state = x["state"]
        for span in (slice(0, cut), slice(cut, None)):
            part = {n: a[:, span] if a is not None and a.dim() >= 3 and n != "state" else a for n, a in x.items()}
            o, state = run(part | {"state": state}, backend=backend)
            outputs.append(o)
        assert_all_close(case.gradients(x, torch.cat(outputs, 1), state), expected)


@every_rule
@every_decay
@pytest.mark.parametrize("fold", [1, 2])
def test_steps_equal_the_whole_and_update_the_state_in_place(rule, decay, fold):
    case = make_case(20, rule, decay, fold=fold)
    expected, x, state = case.expected(), case.inputs, case.inputs["state"].clone()
    for t in range(20):
        given = {n: a[:, t] if a is not None and a.dim() >= 3 else a for n, a in x.items() if n != "state"}
        o = delta_attention_step(**given, state=state, scale=0.5)
        torch.testing.assert_close(o, 0.5 * expected["output"][:, t], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(state, expected["final"], rtol=1e-12, atol=1e-12)


@every_backend
@every_rule
def test_scale_multiplies_the_output_and_not_the_state(rule, backend):
    x = make_case(40, rule, "channel").leaves()
    (plain, state), (scaled, same) = (run(x, scale=scale, backend=backend) for scale in (1.0, -0.125))
    torch.testing.assert_close(scaled, -0.125 * plain, rtol=1e-13, atol=1e-13)
    assert torch.equal(state, same)


@every_backend
@every_rule
@every_decay
def test_strided_inputs_and_broadcast_gradients_equal_contiguous_ones(rule, decay, backend):
    case, results = make_case(40, rule, decay), []
    for strided in (False, True):
        x = case.leaves()
        view = x
        if strided:
            view = {
                n: a if a is None or a.dim() < 3 else a.transpose(1, 2).contiguous().transpose(1, 2)
                for n, a in x.items()
            }
        o, s = run(view, backend=backend)
        if strided:
            (o.sum() + s.sum()).backward()  # the gradients arrive with stride 0
        else:
            torch.autograd.backward([o, s], [torch.ones_like(o), torch.ones_like(s)])
        results.append({n: a.grad for n, a in x.items() if a is not None})
    assert_all_close(results[1], results[0], 1e-13)


@every_decay
def test_expanded_inputs_equal_whole_ones(decay):
    case = make_case(40, "beta", decay)
    for name in ("q", "k", "v", "beta"):
        case.inputs[name] = case.inputs[name][:, :, :1].expand(case.inputs[name].shape)
    assert_all_close(case.measured(), case.expected())


@every_backend
@pytest.mark.parametrize(("rule", "decay"), [("general", "channel"), ("beta", "token"), ("plain", "head")])
def test_gradients_equal_finite_differences(rule, decay, backend):
    """Each rule once: those of all decays are compared with the gradients of the recurrence above."""
    case = make_case(5, rule, decay, batch=2, heads=1, fold=2, width=3, value=2)
    if case.inputs["log_decay"] is not None:
        case.inputs["log_decay"] -= 1e-3  # a step of the differences stays below 0
    documents = make_documents([[1, 3, 1], [5]])
    x = {name: a for name, a in case.leaves().items() if a is not None}

    def call(*arrays):
        return run(dict(zip(x, arrays)), documents=documents, scale=0.7, backend=backend)

    assert torch.autograd.gradcheck(call, tuple(x.values()))


@pytest.mark.parametrize("decay", ["token", "channel"])
def test_gradients_of_decays_equal_finite_differences_across_chunks(decay):
    case = make_case(35, "beta", decay, batch=1, heads=1, width=2, value=2)
    case.inputs["log_decay"] -= 1e-3
    x = case.leaves()
    call = lambda log_decay: run(x | {"log_decay": log_decay})  # noqa: E731
    assert torch.autograd.gradcheck(call, (x["log_decay"],))


@every_backend
@every_decay
def test_an_empty_sequence_returns_its_state(decay, backend):
    case = make_case(0, "beta", decay)
    got = case.measured(backend=backend)
    assert got["output"].shape == (2, 0, 2, 10)
    assert torch.equal(got["final"], case.inputs["state"])
    assert torch.equal(got["grad state"], case.grad_state)


def test_without_return_state_there_is_none_and_the_given_one_is_not_written_to():
    x = make_case(40, "beta", "token").inputs
    state = x["state"].clone()
    given = {n: a for n, a in x.items() if n != "state"}
    assert delta_attention(**given, initial_state=state)[1] is None
    assert torch.equal(state, x["state"])
    zero, none = delta_attention(**given, initial_state=0 * state)[0], delta_attention(**given)[0]
    assert torch.equal(zero, none)


def unit(*shape: int) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, dtype=torch.float64), dim=-1)


KEYS = {
    "equal": lambda: unit(1, 1, 2, 6).expand(2, 100, 2, 6),
    "nearly equal": lambda: F.normalize(unit(1, 1, 2, 6) + 1e-4 * torch.randn(2, 100, 2, 6).double(), dim=-1),
    "repeated": lambda: unit(2, 10, 2, 6).repeat(1, 10, 1, 1),
    "zero": lambda: unit(2, 100, 2, 6) * (torch.arange(100) % 3 > 0)[:, None, None],
    "all zero": lambda: torch.zeros(2, 100, 2, 6).double(),
}


@pytest.mark.parametrize("keys", KEYS.values(), ids=KEYS.keys())
@pytest.mark.parametrize("beta", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("decay", ["none", "channel"])
def test_keys_of_any_kind_equal_the_recurrence(decay, beta, keys):
    case = make_case(100, "beta", decay, keys=keys().contiguous(), beta=beta, strength=0.01)
    expected = case.expected()
    assert_all_close(case.measured(), expected)
    single = {n: x.double() for n, x in case.measured(torch.float32).items()}
    # entries of a chunk's inverse grow to beta, and meet as large ones of the system, each of them rounded once
    assert_all_close(single, expected, 1e-5 * max(1, beta**2))


@every_rule
@pytest.mark.parametrize("decay", ["head", "token", "channel"])
@pytest.mark.parametrize("gate", [0.0, -5.0, -1000.0, "mixed"])
def test_gates_of_any_size_equal_the_recurrence(gate, decay, rule):
    case = make_case(100, rule, decay)
    gates = torch.tensor([0.0, -1000.0, -1e-3, -20.0, 0.0, -5.0], dtype=torch.float64)
    shape = case.inputs["log_decay"].shape
    case.inputs["log_decay"] = gates[torch.randint(6, shape)] if gate == "mixed" else torch.full(shape, gate).double()
    expected = case.expected()
    assert_all_close(case.measured(), expected)
    single = {n: x.double() for n, x in case.measured(torch.float32).items()}
    assert_all_close(single, expected, 2e-5)


@every_backend
@pytest.mark.parametrize("decay", ["token", "channel"])
def test_a_decay_of_minus_infinity_starts_afresh(decay, backend):
    case = make_case(70, "beta", decay, batch=1)
    case.inputs["log_decay"] = torch.zeros_like(case.inputs["log_decay"])
    want = Case(case.inputs, case.grad_output, case.grad_state, {"documents": make_documents([[33, 31, 6]])}).measured()
    case.inputs["log_decay"][:, [33, 64]] = -torch.inf
    got = case.measured(backend=backend)
    del got["grad log_decay"], want["grad log_decay"]
    assert_all_close(got, want)


@pytest.mark.slow
@pytest.mark.parametrize("decay", ["token", "channel"])
def test_seventy_thousand_tokens_equal_the_recurrence(decay):
    case = make_case(70_000, "beta", decay, batch=1, heads=1, width=3, value=2, strength=0.1)
    x, want = case.leaves(), []
    with torch.no_grad():
        outputs = [run(x, backend=backend) for backend in ("torch", "reference")]
    for got, want in zip(*outputs):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
