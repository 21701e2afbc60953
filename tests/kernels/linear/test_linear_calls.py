"""Linear attention: precision, autocast, compilation, empty sequences and refused arguments."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.linear_oracle import assert_contract, make_case
from tests.tiers import in_ci
from zoo_kernels import BackendError, NormalizedState, linear_attention, linear_attention_step

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
FORMS = [("torch", "parallel"), ("torch", "chunk"), ("torch", "scan"), ("reference", "auto")]
every_form = pytest.mark.parametrize(("backend", "algorithm"), FORMS, ids=[f"{b}-{a}" for b, a in FORMS])


KINDS = ("alibi", "paper", "strong", "token", "soft_token")
LOW = [
    *[(129, kind, d) for kind in KINDS for d in DTYPES],  # two chunks of 64 and a token
    *in_ci(*((n, kind, d) for n in (1, 64) for kind in KINDS for d in DTYPES)),
    *in_ci(*((1000, kind, torch.float32) for kind in ("alibi", "token"))),
]


@every_form
@pytest.mark.parametrize(("length", "kind", "dtype"), LOW)
def test_error_is_at_most_twice_that_of_plain_code(length, kind, dtype, backend, algorithm):
    assert_contract(length, kind, dtype, backend=backend, algorithm=algorithm)


@every_form
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_output_has_the_dtype_of_q_and_the_state_is_fp32_or_better(dtype, backend, algorithm):
    q, k, v = (torch.randn(1, 70, 2, 8, dtype=dtype) for _ in range(3))
    o, state = linear_attention(q, k, v, torch.zeros(2), return_state=True, backend=backend, algorithm=algorithm)
    assert o.dtype == dtype
    assert state.dtype == torch.promote_types(dtype, torch.float32)


@every_form
def test_autocast_changes_nothing(backend, algorithm):
    x = make_case(129, "alibi").leaves(torch.float32)
    results = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            results.append(linear_attention(*list(x.values())[:4], backend=backend, algorithm=algorithm)[0])
    grads = [torch.autograd.grad(o.square().sum(), list(x.values())[:4]) for o in results]
    assert torch.equal(*results)
    assert all(map(torch.equal, *grads))


@pytest.mark.parametrize("algorithm", ["parallel", "chunk", "scan"])
def test_a_backward_pass_under_autocast_changes_nothing(algorithm):
    case = make_case(129, "alibi")
    outside = case.measured(torch.float32, algorithm=algorithm)
    with torch.autocast("cpu", torch.bfloat16):
        inside = case.measured(torch.float32, algorithm=algorithm)
    assert all(torch.equal(outside[n], inside[n]) for n in outside)


def test_autocast_changes_no_step():
    q, k, v = torch.randn(3, 2, 4, 8)
    states = torch.zeros(2, 4, 8, 8), torch.zeros(2, 4, 8, 8)
    outside = linear_attention_step(q, k, v, -torch.ones(4), states[0])
    with torch.autocast("cpu", torch.bfloat16):
        inside = linear_attention_step(q=q, k=k, v=v, log_decay=-torch.ones(4), state=states[1])
    assert torch.equal(outside, inside)
    assert torch.equal(*states)


@pytest.mark.parametrize(("algorithm", "length"), [("parallel", 5), ("chunk", 65), ("scan", 128)])
def test_compiled_in_one_graph_equals_eager(algorithm, length):
    case = make_case(length, "token")
    x, y = case.leaves(), case.leaves()
    compiled = torch.compile(linear_attention, backend="aot_eager", fullgraph=True, dynamic=False)
    results = []
    for function, leaves in ((linear_attention, x), (compiled, y)):
        o, s = function(
            *list(leaves.values())[:4], initial_state=leaves["state"], return_state=True, algorithm=algorithm
        )
        results.append(case.gradients(leaves, o, s))
    for name, want in results[0].items():
        torch.testing.assert_close(results[1][name], want, rtol=1e-12, atol=1e-12)


@every_form
@pytest.mark.parametrize("kind", ["alibi", "token"])
def test_an_empty_sequence_returns_its_state(kind, backend, algorithm):
    case = make_case(0, kind)
    got = case.measured(backend=backend, algorithm=algorithm)
    assert got["output"].shape == (2, 0, 3, 24)
    assert torch.equal(got["final"], case.inputs["state"])
    assert torch.equal(got["grad state"], case.grad_state)
    assert not got["grad log_decay"].any()


@every_form
def test_without_return_state_there_is_none(backend, algorithm):
    x = torch.randn(1, 3, 2, 4)
    assert linear_attention(x, x, x, backend=backend, algorithm=algorithm)[1] is None


def test_the_given_state_is_not_written_to():
    case = make_case(70, "alibi")
    state = case.inputs["state"].clone()
    case.measured()
    assert torch.equal(state, case.inputs["state"])


X = torch.zeros(2, 5, 3, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"algorithm": "fast"}, r"algorithm='fast'.*auto, parallel, chunk, scan"),
        ({"backend": "cuda"}, r"backend='cuda'.*auto, triton, torch, reference"),
        ({"q": X[0]}, r"expected q, k \(B, T, H, D\)"),
        ({"k": X[:, :4]}, r"got \(2, 5, 3, 4\), \(2, 4, 3, 4\)"),
        ({"k": X[..., :3]}, "expected q, k"),
        ({"v": X[:, :, :2]}, r"v \(B, T, H, E\)"),
        ({"log_decay": torch.zeros(4)}, r"log_decay has shape \(4,\), expected \(3,\) or \(2, 5, 3\)"),
        ({"log_decay": torch.zeros(5, 3)}, r"log_decay has shape \(5, 3\)"),
        ({"documents": torch.zeros(2, 4)}, r"documents has shape \(2, 4\), expected \(2, 5\)"),
        ({"initial_state": torch.zeros(2, 3, 4, 5)}, r"initial_state has shape .*expected \(2, 3, 4, 4\)"),
        ({"initial_state": X, "normalize": True}, "normalize=True does not go with an initial_state of type Tensor"),
        ({"initial_state": NormalizedState(X, X[..., 0])}, "normalize=False does not go with .*NormalizedState"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        linear_attention(**({"q": X, "k": X, "v": X} | change))


def test_an_unknown_backend_is_a_backend_error():
    with pytest.raises(BackendError):
        linear_attention(X, X, X, backend="cuda")


ONE = torch.zeros(2, 3, 4)


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": X}, r"expected q, k \(B, H, D\) and v \(B, H, E\), got \(2, 5, 3, 4\)"),
        ({"k": ONE[:, :1]}, r"got \(2, 3, 4\), \(2, 1, 4\)"),
        ({"v": ONE[:1]}, "expected q, k"),
        ({"log_decay": torch.zeros(1)}, r"log_decay has shape \(1,\), expected \(3,\) or \(2, 3\)"),
        ({"state": torch.zeros(2, 3, 4, 6)}, r"state has shape \(2, 3, 4, 6\), expected \(2, 3, 4, 4\)"),
        (
            {"state": NormalizedState(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3)), "normalize": True},
            r"state\.z has shape \(2, 3\), expected \(2, 3, 4\)",
        ),
    ],
)
def test_a_step_refuses_arguments_that_do_not_fit(change, message, backend):
    given = {"q": ONE, "k": ONE, "v": ONE, "log_decay": None, "state": torch.zeros(2, 3, 4, 4)} | change
    with pytest.raises(ValueError, match=message):
        linear_attention_step(**given, backend=backend)


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_a_step_goes_on_from_the_state_of_a_sequence(backend):
    q, k, v = (torch.rand(2, 9, 3, 4) for _ in range(3))
    want, _ = linear_attention(q, k, v, normalize=True, backend=backend)
    _, state = linear_attention(q[:, :8], k[:, :8], v[:, :8], normalize=True, return_state=True, backend=backend)
    got = linear_attention_step(q[:, 8], k[:, 8], v[:, 8], None, state, normalize=True, backend=backend)
    torch.testing.assert_close(got, want[:, 8])


def test_a_step_refuses_a_state_of_the_other_kind():
    x = torch.zeros(1, 2, 4)
    with pytest.raises(ValueError, match="normalize=True does not go with a state of type Tensor"):
        linear_attention_step(x, x, x, None, torch.zeros(1, 2, 4, 4), normalize=True)
